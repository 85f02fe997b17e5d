"""Sparse products of linear layers in training: over active weights only, on the CPU.

Forward and dL/dx are products of a CSR matrix, dL/dvalues is a sampled dense-dense product (SDDMM). What decides speed
(benchmarks/sparsity/sparse_speed.py): `W @ x.T`, since `F.linear(x, W)` is slow for a CSR weight; blocks of at most
512 activations, which stay in cache; int32 indices.
"""

from __future__ import annotations

import functools
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_efficient.compat.torch import change_count
from hf_efficient.sparsity.sparse_weight import SparseWeight, check_indices

with warnings.catch_warnings():  # torch says once per process that CSR tensors are in beta: now
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), check_invariants=False)

BLOCK = 512  # activations multiplied at once
SMALLEST, DENSEST = 2**14, 0.3  # smaller or denser layers are not timed: they stay dense


class Pattern:
    """Positions of the active weights of a (rows, columns) matrix, sorted for products with it and with its transpose.

    Args:
        indices: (k,) integer: flat row-major indices, in the order of the values.
        rows: of the matrix.
        columns: of the matrix.
    """

    def __init__(self, indices: Tensor, rows: int, columns: int) -> None:
        flat = indices.long()
        check_indices(flat, rows * columns, "CSR layer")  # CSR products do not check, and would read any memory
        row, column = flat // columns, flat % columns
        order, transposed_order = flat.argsort(), (column * rows + row).argsort()
        self.shape, self.transposed_shape = (rows, columns), (columns, rows)
        self.starts, self.columns = _starts(row, rows), column[order].int()
        self.transposed_starts, self.rows = _starts(column, columns), row[transposed_order].int()
        self.order, self.transposed_order, self.back = order.int(), transposed_order.int(), order.argsort().int()

    def csr(self, sorted_values: Tensor) -> Tensor:
        """(rows, columns) CSR of values in row-major order; shares their memory."""
        return torch.sparse_csr_tensor(self.starts, self.columns, sorted_values, self.shape, check_invariants=False)

    def matrix(self, values: Tensor) -> Tensor:
        """(rows, columns) CSR of values in the order of the indices."""
        return self.csr(values.index_select(0, self.order))

    def transposed(self, values: Tensor) -> Tensor:
        """(columns, rows) CSR of values in the order of the indices."""
        return torch.sparse_csr_tensor(
            self.transposed_starts,
            self.rows,
            values.index_select(0, self.transposed_order),
            self.transposed_shape,
            check_invariants=False,
        )


def _starts(rows: Tensor, count: int) -> Tensor:
    return F.pad(torch.bincount(rows, minlength=count).cumsum(0), (1, 0)).int()


_scratch = threading.local()


def scratch(purpose: str, rows: int, columns: int) -> Tensor:
    """(rows, columns) float32 with any content, valid until the next call with this purpose.

    For large, short-lived results: fresh memory costs page faults, about a fifth of a product's time.
    """
    held: Tensor | None = getattr(_scratch, purpose, None)
    if held is None or held.numel() < rows * columns:
        held = torch.empty(rows * columns)
        setattr(_scratch, purpose, held)
    return held[: rows * columns].view(rows, columns)


def columns_of(x: Tensor) -> list[Tensor]:
    """(B, n) as transposed blocks (n, b), b <= BLOCK, as products with CSR matrices need them."""
    return [block.t().contiguous() for block in x.split(BLOCK)]


def multiply(matrix: Tensor, block: Tensor, out: Tensor) -> None:
    """Write (matrix @ block).T, (b, rows), for a CSR (rows, n) and a block (n, b) of activations."""
    product = scratch("product", matrix.shape[0], block.shape[1])
    torch.addmm(product, matrix, block, beta=0, out=product)  # beta = 0: the old content is not read
    out.copy_(product.t())


class _Product(torch.autograd.Function):
    """y = x @ W.T for the CSR weight W of a SparseWeight."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, pattern: Pattern, weight: SparseWeight) -> Tensor:
        blocks = columns_of(x)
        ctx.pattern, ctx.weight = pattern, weight
        ctx.save_for_backward(values, *blocks)
        weight.start_collecting()
        matrix, y = pattern.matrix(values), x.new_empty(len(x), pattern.shape[0])
        for block, out in zip(blocks, y.split(BLOCK), strict=True):
            multiply(matrix, block, out)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, *blocks = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        (rows, columns), collecting = pattern.shape, ctx.weight.collecting
        if ctx.needs_input_grad[0]:
            ctx.weight.on_backward()
        to_x = gradient.new_empty(len(gradient), columns) if ctx.needs_input_grad[1] else None
        transposed = pattern.transposed(values) if to_x is not None else None
        # at some steps the topology reads dL/dz of inactive weights too
        to_weight = gradient.new_zeros(rows, columns) if collecting else pattern.csr(torch.zeros_like(values))
        for i, (x, part) in enumerate(zip(blocks, gradient.split(BLOCK), strict=True)):
            block = scratch("gradient", rows, len(part)).copy_(part.t())
            if transposed is not None and to_x is not None:
                multiply(transposed, block, to_x[i * BLOCK : (i + 1) * BLOCK])
            if collecting:
                to_weight.addmm_(block, x.t())
            elif ctx.needs_input_grad[0]:
                torch.sparse.sampled_addmm(to_weight, block, x.t(), out=to_weight)
        if collecting:
            ctx.weight.collect(to_weight)
            return to_weight.flatten().index_select(0, ctx.weight.indices), to_x, None, None
        to_values = to_weight.values().index_select(0, pattern.back) if ctx.needs_input_grad[0] else None
        return to_values, to_x, None, None


class CSRPath:
    """Decides once whether a layer trains faster with sparse or dense products, and computes the sparse ones.

    Args:
        backend: "dense", "csr" or "auto".
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._pattern: Pattern | None = None
        self._seen: tuple[int, int] = (-1, -1)

    def suits(self, weight: SparseWeight, x: Tensor) -> bool:
        """Whether to multiply `x` (..., in) by the CSR matrix. "auto" times both forms at a layer's first call.

        The decision is kept in the weight's memory, so that a resumed training computes the same.
        """
        possible = x.device.type == "cpu" and x.dtype == weight.values.dtype == torch.float32
        if self.backend == "dense" or not possible or weight.probing or torch.is_autocast_enabled("cpu"):
            return False
        if self.backend == "csr":
            return True
        if torch.compiler.is_compiling():
            return False
        if weight.numel < SMALLEST or len(weight.indices) > DENSEST * weight.numel:
            return False
        if "csr" not in weight.memory:
            faster = csr_trains_faster(weight.shape, len(weight.indices), x[..., 0].numel())
            weight.memory["csr"] = torch.tensor(faster)
        return bool(weight.memory["csr"])

    @torch.compiler.disable  # compilers do not support CSR products
    def __call__(self, weight: SparseWeight, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), without bias."""
        pattern = self.pattern(weight)
        y: Tensor = _Product.apply(weight.values, x.reshape(-1, x.shape[-1]), pattern, weight)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)

    def pattern(self, weight: SparseWeight) -> Pattern:
        """The weight's pattern, rebuilt when its indices have changed."""
        seen = (weight.indices.data_ptr(), change_count(weight.indices))
        if self._pattern is None or seen != self._seen:
            self._pattern, self._seen = Pattern(weight.indices, *weight.shape), seen
        return self._pattern


@functools.cache
def csr_trains_faster(shape: torch.Size, k: int, tokens: int) -> bool:
    """Time forward and backward of both forms on random numbers, once for all layers of a size.

    Args:
        shape: (out, in).
        k: active weights.
        tokens: B.
    """
    weight, x = example(shape, k, tokens)
    path = CSRPath("csr")
    x.requires_grad_()

    def forward_backward(product: Callable[[], Tensor]) -> None:
        with torch.enable_grad():
            product().sum().backward()

    times = time_alternately(
        lambda: forward_backward(lambda: path(weight, x)), lambda: forward_backward(lambda: F.linear(x, weight.dense()))
    )
    return times[0] < times[1]


def example(shape: torch.Size, k: int, tokens: int) -> tuple[SparseWeight, Tensor]:
    """A random weight and activations, for timing."""
    generator = torch.Generator().manual_seed(0)  # the program's random state is not changed
    weight = SparseWeight(shape, k)
    weight.select(torch.randperm(weight.numel, generator=generator)[:k], torch.randn(k, generator=generator))
    return weight, torch.randn(max(1, tokens), shape[1], generator=generator)


def time_alternately(*calls: Callable[[], object], seconds: float = 0.3) -> list[float]:
    """Shortest time of each call, in seconds; they take turns, so that other load affects all equally."""
    for call in calls:
        call()
    best = [float("inf")] * len(calls)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or (rounds < 30 and time.perf_counter() < end):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
        rounds += 1
    return best
