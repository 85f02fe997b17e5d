"""Floating-point operations of a computation, counted from the products that it runs.

Products of matrices, convolutions and attention count two operations for each multiplication with its addition; what
works entry by entry (norms, activations, softmax) is not counted, as in the usual hand counts. Attention is counted
whole, masked places included. `torch.utils.flop_counter` does the counting; this module adds the kernels that it
leaves out, and products with matrices that really are sparse.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from hf_efficient.compat.torch import attention_on_cpu, attention_on_cpu_backward, grouped_mm, of_tensors

aten = torch.ops.aten


@dataclass(frozen=True)
class Flops:
    """What was counted.

    Args:
        total: all operations.
        own: name of a module -> operations in its own forward, without those of modules that it calls, and backward,
            without those of modules inside it. The model itself has the name ""; operations outside of it (an
            optimizer's) are in `total` alone.
    """

    total: int = 0
    own: dict[str, int] = field(default_factory=dict)


def count_flops(run: Callable[[], object], model: torch.nn.Module) -> Flops:
    """Operations of `run()`.

    Args:
        run: calls `model`, with or without backward.
        model: its modules are what operations are assigned to.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a whole layer as one kernel, whose products nobody sees
    own, forward = Counter[str](), Counter[str]()
    try:
        counter = FlopCounterMode(display=False, depth=None, custom_mapping=formulas())  # type: ignore[arg-type]
        with counter, _forwards_counted(model, counter.get_total_flops, own, forward):
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    root = type(model).__name__
    backward = {
        inside: sum(counts.values()) - forward[inside]
        for name, counts in counter.get_flop_counts().items()
        if name == root or name.startswith(f"{root}.")
        for inside in [name[len(root) :].lstrip(".")]
    }
    own.update(_own(backward))
    return Flops(counter.get_total_flops(), {name: count for name, count in own.items() if count})


def _own(whole: dict[str, int]) -> dict[str, int]:
    """Counts without those of the counted modules inside: name -> operations."""
    own = dict(whole)
    for name, count in whole.items():
        outer = name
        while outer:
            outer = outer.rpartition(".")[0]
            if outer in own:
                own[outer] -= count
                break
    return own


@contextmanager
def _forwards_counted(
    model: torch.nn.Module, total: Callable[[], int], own: Counter[str], whole: Counter[str]
) -> Iterator[None]:
    """In the block add up what each forward of a module takes by itself, whoever calls it, and with what it calls."""
    calls: list[list[int]] = []  # of the forwards under way: operations before, and in forwards inside

    def enter(module: torch.nn.Module, inputs: Any) -> None:
        calls.append([total(), 0])

    def leave(name: str, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        before, inside = calls.pop()
        spent = total() - before
        own[name] += spent - inside
        whole[name] += spent
        if calls:
            calls[-1][1] += spent

    hooks = [module.register_forward_pre_hook(enter, prepend=True) for module in model.modules()]
    hooks += [m.register_forward_hook(partial(leave, name)) for name, m in model.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def product_flops(a: Tensor, b: Tensor) -> int:
    """2 x multiplications of the product (m, n) @ (n, p); of a sparse factor only the entries that it stores count."""
    if a.layout is not torch.strided:
        return 2 * stored(a) * b.shape[-1]
    if b.layout is not torch.strided:
        return 2 * stored(b) * a.shape[-2]
    return 2 * prod(a.shape) * b.shape[-1]


def stored(matrix: Tensor) -> int:
    """Entries that a sparse matrix stores."""
    return (matrix.coalesce() if matrix.layout is torch.sparse_coo else matrix).values().numel()


@of_tensors
def _addmm(added: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return product_flops(a, b)


@of_tensors
def _mm(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return product_flops(a, b)


@of_tensors
def _sampled_addmm(added: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """a @ b at the places where `added`, a CSR matrix, stores an entry."""
    return 2 * stored(added) * a.shape[-1]


@of_tensors
def _grouped_mm(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """A product for each group: of its own matrix of a stack (a factor of three dimensions) or its share of tokens."""
    rows = prod(a.shape) if b.dim() == 3 or a.dim() == 2 else prod(a.shape[1:])  # a token belongs to one group
    return 2 * rows * b.shape[-1]


def _attention_on_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_on_cpu_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _lstm_on_cpu(x: Any, inputs: Any, states: Any, *_: Any, **__: Any) -> int:
    """One layer in one direction: each token and each state times its weights."""
    return 2 * prod(x[:-1]) * (prod(inputs) + prod(states))


def _lstm_on_cpu_backward(x: Any, inputs: Any, states: Any, *_: Any, **__: Any) -> int:
    return 2 * _lstm_on_cpu(x, inputs, states)


def _bnb_int8(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """(..., inputs) times (outputs, inputs), which are 8-bit codes."""
    return 2 * prod(x) * int(weight[0])


def _bnb_int8_mixed(x: Any, codes: Any, weight: Any, *_: Any, **__: Any) -> int:
    return _bnb_int8(x, weight)


def _bnb_4bit(x: Any, weight: Any, shape: Any, *_: Any, **__: Any) -> int:
    """(..., inputs) times a weight of this shape, which is stored as 4-bit codes."""
    return 2 * prod(x) * int(shape[0])


#: Operator of bitsandbytes -> formula. They exist once the library is imported.
OF_BITSANDBYTES: dict[str, Callable[..., int]] = {
    "int8_scaled_mm": _bnb_int8,
    "int8_linear_matmul": _bnb_int8,
    "int8_mixed_scaled_mm": _bnb_int8_mixed,
    "gemv_4bit": _bnb_4bit,
    "gemm_4bit": _bnb_4bit,
}


def formulas() -> dict[Any, Callable[..., int]]:
    """Operator -> formula, of what may run now."""
    if "bitsandbytes" not in sys.modules:
        return FORMULAS
    known = {name: getattr(torch.ops.bitsandbytes, name, None) for name in OF_BITSANDBYTES}
    return FORMULAS | {op: OF_BITSANDBYTES[name] for name, op in known.items() if op is not None}


#: Operator -> formula, of those that torch does not count, or counts as if no matrix were sparse.
FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mm: _mm,
    aten.addmm: _addmm,
    aten.addmm_: _addmm,
    aten.sparse_sampled_addmm: _sampled_addmm,
    grouped_mm: _grouped_mm,
    attention_on_cpu: _attention_on_cpu,
    attention_on_cpu_backward: _attention_on_cpu_backward,
    aten.mkldnn_rnn_layer: _lstm_on_cpu,
    aten.mkldnn_rnn_layer_backward: _lstm_on_cpu_backward,
}
