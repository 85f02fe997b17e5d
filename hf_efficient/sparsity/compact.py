"""Linear layers that really are sparse: products over living weights only, on the CPU.

Forward and dL/dx are products of a CSR matrix, dL/dvalues is a sampled dense-dense product (SDDMM). What decides speed
(measured by benchmarks/sparse_speed.py): `W @ x.T`, since `F.linear(x, W)` is slow for a CSR weight; blocks of at most
512 activations, which stay in cache; int32 indices.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weight import SparseWeight, check_places

with warnings.catch_warnings():  # torch says once per process that CSR tensors are in beta: now
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), check_invariants=False)

BLOCK = 512  # activations multiplied at once
SMALLEST, DENSEST = 2**14, 0.3  # layers of fewer places, or denser ones, are not worth a timing


class Pattern:
    """Where the living weights of a (rows, columns) matrix are, sorted for products with it and with its transpose.

    Args:
        places: (k,) integer: flat row-major places, in the order of the values.
        rows: of the matrix.
        columns: of the matrix.
    """

    def __init__(self, places: Tensor, rows: int, columns: int) -> None:
        flat = places.long()
        check_places(flat, rows * columns, "compact layer")  # CSR products do not check, and would read anywhere
        row, column = flat // columns, flat % columns
        self.shape, self.transposed_shape = (rows, columns), (columns, rows)
        self.order = flat.argsort()
        self.starts, self.columns = _starts(row, rows), column[self.order].int()
        self.transposed_order = (column * rows + row).argsort()
        self.transposed_starts, self.rows = _starts(column, columns), row[self.transposed_order].int()

    def matrix(self, values: Tensor) -> Tensor:
        """(rows, columns) CSR of values in the order of the places."""
        return torch.sparse_csr_tensor(
            self.starts, self.columns, values[self.order], self.shape, check_invariants=False
        )

    def transposed(self, values: Tensor) -> Tensor:
        """(columns, rows) CSR of values in the order of the places."""
        return torch.sparse_csr_tensor(
            self.transposed_starts,
            self.rows,
            values[self.transposed_order],
            self.transposed_shape,
            check_invariants=False,
        )

    def sample(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Entries of sum_b left_b @ right_b.T at the places, (k,), in their order: dL/dvalues.

        Args:
            left: blocks (rows, b).
            right: blocks (columns, b).
        """
        total = self.matrix(left[0].new_zeros(len(self.order)))
        for a, b in zip(left, right, strict=True):
            total = torch.sparse.sampled_addmm(total, a, b.t(), beta=1.0)
        values = torch.empty_like(total.values())
        values[self.order] = total.values()
        return values


def _starts(rows: Tensor, count: int) -> Tensor:
    return F.pad(torch.bincount(rows, minlength=count).cumsum(0), (1, 0)).int()


def columns_of(x: Tensor) -> list[Tensor]:
    """(B, n) as transposed blocks (n, b), b <= BLOCK: what products with CSR matrices want."""
    return [block.t().contiguous() for block in x.split(BLOCK)]


def multiply(matrix: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """x @ matrix.T for the blocks of x: a (rows, columns) CSR gives (B, rows)."""
    if len(blocks) == 1:
        return (matrix @ blocks[0]).t().contiguous()
    return torch.cat([(matrix @ block).t() for block in blocks])


class _Product(torch.autograd.Function):
    """y = x @ W.T for the CSR weight W of a SparseWeight."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, pattern: Pattern, weight: SparseWeight) -> Tensor:
        blocks = columns_of(x)
        ctx.pattern, ctx.weight = pattern, weight
        ctx.save_for_backward(values, *blocks)
        weight.start_collecting()
        return multiply(pattern.matrix(values), blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, *x = ctx.saved_tensors
        blocks = columns_of(gradient)
        to_x = multiply(ctx.pattern.transposed(values), blocks) if ctx.needs_input_grad[1] else None
        if ctx.weight.collecting:  # the topology wants dL/dz of dead places too, at this step
            whole = sum(g @ b.t() for g, b in zip(blocks, x, strict=True))
            ctx.weight.collect(whole)
            return whole.flatten()[ctx.weight.places], to_x, None, None
        return ctx.pattern.sample(blocks, x) if ctx.needs_input_grad[0] else None, to_x, None, None


class CompactPath:
    """Decides, once, whether a layer is faster compact or dense while it trains, and computes it compact.

    Args:
        kernel: "dense", "compact" or "auto".
    """

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self._pattern: Pattern | None = None
        self._seen: tuple[int, int] = (-1, -1)

    def suits(self, weight: SparseWeight, x: Tensor) -> bool:
        """Whether `x` (..., in) should be multiplied compact. "auto" times both at the first call of a layer.

        The decision is kept in the weight's memory, so that a resumed training computes as it did.
        """
        possible = x.device.type == "cpu" and x.dtype == weight.values.dtype == torch.float32
        if self.kernel == "dense" or not possible or weight.probing or torch.is_autocast_enabled("cpu"):
            return False
        if self.kernel == "compact":
            return True
        if weight.numel < SMALLEST or len(weight.indices) > DENSEST * weight.numel:
            return False
        if "compact" not in weight.memory:
            faster = compact_trains_faster(weight.shape, len(weight.indices), x[..., 0].numel())
            weight.memory["compact"] = torch.tensor(faster)
        return bool(weight.memory["compact"])

    def __call__(self, weight: SparseWeight, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), without bias."""
        pattern = self.pattern(weight)
        y: Tensor = _Product.apply(weight.values, x.reshape(-1, x.shape[-1]), pattern, weight)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)

    def pattern(self, weight: SparseWeight) -> Pattern:
        """The weight's pattern, made anew when places have moved."""
        seen = (weight.indices.data_ptr(), weight.indices._version)
        if self._pattern is None or seen != self._seen:
            self._pattern, self._seen = Pattern(weight.indices, *weight.shape), seen
        return self._pattern


@functools.cache
def compact_trains_faster(shape: torch.Size, k: int, tokens: int) -> bool:
    """Time forward and backward of both ways on random numbers; once for all layers of a size.

    Args:
        shape: (out, in).
        k: living weights.
        tokens: B.
    """
    weight, x = _example(shape, k, tokens)
    path = CompactPath("compact")
    x.requires_grad_()

    def both_ways(product: Callable[[], Tensor]) -> None:
        with torch.enable_grad():
            product().sum().backward()

    times = time_alternately(
        lambda: both_ways(lambda: path(weight, x)), lambda: both_ways(lambda: F.linear(x, weight.dense()))
    )
    return times[0] < times[1]


@functools.cache
def compact_infers_faster(shape: torch.Size, k: int, tokens: int) -> bool:
    """The same for forward alone, against a plain dense layer."""
    weight, x = _example(shape, k, tokens)
    dense = weight.dense().detach()
    layer = CompactLinear(dense)
    times = time_alternately(lambda: layer(x), lambda: F.linear(x, dense))
    return times[0] < times[1]


def _example(shape: torch.Size, k: int, tokens: int) -> tuple[SparseWeight, Tensor]:
    generator = torch.Generator().manual_seed(0)  # the program's own chance stays as it is
    weight = SparseWeight(shape, k)
    weight.select(torch.randperm(weight.numel, generator=generator)[:k], torch.randn(k, generator=generator))
    return weight, torch.randn(max(1, tokens), shape[1], generator=generator)


def time_alternately(*calls: Callable[[], object], seconds: float = 0.3) -> list[float]:
    """Shortest time of each call, in seconds; they take turns, so that a busy machine hits all alike."""
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


class CompactLinear(nn.Module):
    """A linear layer for inference that holds its living weights only, as CSR.

    Args:
        weight: (out, in) float32, most of it zero.
        bias: (out,) or None.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        matrix = weight.detach().to_sparse_csr()
        self.register_buffer("starts", matrix.crow_indices().int())
        self.register_buffer("columns", matrix.col_indices().int())
        self.register_buffer("values", matrix.values())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def matrix(self) -> Tensor:
        """(out, in) CSR."""
        return torch.sparse_csr_tensor(
            self.starts, self.columns, self.values, (self.out_features, self.in_features), check_invariants=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out). No gradients."""
        with torch.no_grad():
            y = multiply(self.matrix(), columns_of(x.reshape(-1, self.in_features)))
            y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"{self.in_features}, {self.out_features}, alive={len(self.values)}"


def compress(model: nn.Module, *, tokens: int = 128, kernel: str = "auto") -> nn.Module:
    """Replace sparse linear layers of a plain model by `CompactLinear`, for inference on the CPU, in place.

    `decompress` brings back the model as it was, bit for bit but for signs of zeros.

    Args:
        model: any module; its `nn.Linear` layers with float32 weights on the CPU are looked at.
        tokens: activations a forward has, batch times length: what is timed.
        kernel: "auto" times each layer once in both forms; "compact" replaces each layer that is at least 70 % zero.

    Returns:
        `model`.

    Raises:
        ValueError: `model` is a PEFT model (merge it first), or `tokens` < 1, or `kernel` is not known.
    """
    if kernel not in ("auto", "compact"):
        raise ValueError(f"kernel={kernel!r} is not known; expected 'auto' or 'compact'.")
    if tokens < 1:
        raise ValueError(f"tokens={tokens} is out of range; expected the activations of a forward, >= 1.")
    if hasattr(model, "merge_and_unload"):
        raise ValueError("compress takes a plain model; merge the adapter first: model = model.merge_and_unload().")
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
            continue
        k, shape = int(layer.weight.count_nonzero()), layer.weight.shape
        if not name or not 1 <= k <= DENSEST * layer.weight.numel():
            continue
        if kernel == "compact" or compact_infers_faster(shape, k, tokens):
            model.set_submodule(name, CompactLinear(layer.weight, layer.bias).train(layer.training))
    return model


def decompress(model: nn.Module) -> nn.Module:
    """Turn every `CompactLinear` back into `nn.Linear`; in place. Returns `model`."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, CompactLinear):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            linear.weight = nn.Parameter(layer.matrix().to_dense())
            if layer.bias is not None:
                linear.bias = nn.Parameter(layer.bias)
            model.set_submodule(name, linear.train(layer.training))
    return model
