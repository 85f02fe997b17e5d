"""A weight of which only k entries exist: their values are the one trainable tensor, their places a buffer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_efficient.reading import shown

if TYPE_CHECKING:
    from .training.monitor import Attendance


class SparseWeight(nn.Module):
    """k living entries of a tensor of n places; all other places are dead.

    An optimizer sees `values` alone, so its moments exist for living entries only. `values` and `indices` keep their
    order: what moves changes in its slot, and whatever an optimizer remembers of the other slots stays right.

    Args:
        shape: of the whole tensor.
        k: living entries, 1 <= k <= n.
        dtype: of the values.
        device: of values and places.

    Attributes:
        values: (k,) parameter.
        indices: (k,) int32 buffer (int64 from 2^31 places on), flat row-major places, unique, in no order.
        collecting: while True, backward adds dL/dz to `gradient`, z being the whole tensor.
        watched: (w,) integer: the places of which `gradient` is wanted, the living first, in their order; None: all n.
        probing: while True, the whole tensor is the one given to `dense`, and nothing living is differentiated.
        gradient: (n,) or (w,) float32, or None.
        matrix: (matrices, rows, columns) that a topology sees: one, with all behind dimension 0 as columns.
        input_dim: of rows and columns, those that a layer's inputs run over: 1, but 0 for Conv1D of GPT-2.
        budget: k that training ends with; differs from that of now only while a topology starts with more.
        memory: what a topology remembers of this weight between steps (name -> tensor).
        seconds: spent on collecting.
        attendance: told of every backward pass, where somebody should move the weights; else None.

    Raises:
        ValueError: k outside of [1, n].
    """

    values: nn.Parameter
    indices: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        k: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        n = self.numel
        if not 1 <= k <= n:
            raise ValueError(f"k={k} living weights of a tensor {tuple(shape)} is impossible; expected 1 to {n}.")
        places = torch.arange(k, dtype=torch.int32 if n < 2**31 else torch.int64, device=device)
        self.values = nn.Parameter(torch.zeros(k, dtype=dtype, device=device))
        self.register_buffer("indices", places)
        self.matrix = (1, self.shape[0], n // self.shape[0])
        self.input_dim = 1
        self.budget = k
        self.collecting = False
        self.probing = False
        self.watched: Tensor | None = None
        self.gradient: Tensor | None = None
        self.memory: dict[str, Tensor] = {}
        self.seconds = 0.0
        self.attendance: Attendance | None = None
        self._checked: Tensor | None = None  # the `indices` that were last found to be places

    @property
    def numel(self) -> int:
        """n, the number of places."""
        return math.prod(self.shape)

    @property
    def places(self) -> Tensor:
        """(k,) int64: `indices`, as torch indexes with them."""
        return self.indices.long()

    def holds_experts(self, inputs_first: bool) -> None:
        """The tensor is (experts, outputs, inputs), or (experts, inputs, outputs) with `inputs_first`."""
        experts, rows, columns = self.shape
        self.input_dim = 0 if inputs_first else 1
        self.matrix = (1, experts * rows, columns) if inputs_first else (experts, rows, columns)

    @property
    def inputs(self) -> int:
        """Number of inputs; those of different experts are different ones."""
        matrices, rows, columns = self.matrix
        return matrices * (rows if self.input_dim == 0 else columns)

    def input_of(self, places: Tensor) -> Tensor:
        """Which input each of these places belongs to, integer of the same shape."""
        matrices, rows, columns = self.matrix
        if self.input_dim == 0:
            return places // columns
        return places % columns if matrices == 1 else places // (rows * columns) * columns + places % columns

    def alive(self) -> Tensor:
        """(n,) bool: which places live."""
        return torch.zeros(self.numel, dtype=torch.bool, device=self.indices.device).index_fill_(0, self.places, True)

    def dense(self, base: Tensor | None = None) -> Tensor:
        """The whole tensor, of `shape`: zero (or `base`) plus the values at their places. Differentiable.

        Args:
            base: tensor of `shape` to add to, or None.

        Raises:
            ValueError: other `indices` have come, and they are no places of this tensor.
        """
        # some loaders put a tensor in its place and ask nobody; a compiler cannot branch on what is in a tensor
        if self.indices is not self._checked and not torch.compiler.is_compiling():
            check_places(self.indices, self.numel, "sparse weight")
            self._checked = self.indices
        whole: Tensor = _Scatter.apply(self.values, self.indices, base, self)  # type: ignore[no-untyped-call]
        return whole

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_checked": None})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # type: ignore[override]
        if f"{prefix}indices" in state_dict:
            check_places(state_dict[f"{prefix}indices"], self.numel, prefix.rstrip(".") or "sparse weight")
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def select(self, places: Tensor, values: Tensor | None = None) -> None:
        """Let exactly these places live.

        Args:
            places: (k,) integer, unique.
            values: (k,), their values; None is zeros.
        """
        self.indices.copy_(places)
        self.values.zero_() if values is None else self.values.copy_(values)

    @torch.no_grad()
    def swap(self, slots: Tensor, places: Tensor, values: Tensor | None = None) -> None:
        """In these slots, let other places live; k stays.

        Args:
            slots: (c,) int64, unique: positions in `values`.
            places: (c,) integer: dead places that come alive there.
            values: (c,), what they start with; None is zeros.
        """
        self.indices[slots] = places.to(self.indices.dtype)
        self.values[slots] = 0.0 if values is None else values.to(self.values.dtype)

    @torch.no_grad()
    def resize(self, kept: Tensor, places: Tensor) -> None:
        """Keep some slots, append new places with value zero; k changes, the Parameter object stays.

        Args:
            kept: (r,) int64: slots that stay, in the order they take.
            places: (c,) integer: dead places that come alive behind them.
        """
        values = torch.cat([self.values[kept], self.values.new_zeros(len(places))])
        self.indices = self._checked = torch.cat([self.indices[kept], places.to(self.indices.dtype)])
        self.values.grad = None
        # autograd's accumulator keeps the old size while any graph is alive; another dtype in between makes it let go
        self.values.data = torch.empty(0, dtype=torch.float64, device=values.device)
        self.values.data = values

    def living_gradient(self) -> Tensor:
        """(k,) float32: `gradient` of the living, in their order."""
        assert self.gradient is not None
        if self.watched is not None:
            return self.gradient[: len(self.indices)]
        return self.gradient.index_select(0, self.indices)  # several times faster than indexing, and takes int32

    def start_collecting(self) -> None:
        """Called by a forward: without gradients so far it is a step's first, and what a skipped step left is void.

        Raises:
            RuntimeError: the weight is a replica, whose gradients nobody would read.
        """
        if self.collecting and getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel computes with copies of the layers, and the gradients of dead weights, which the "
                "topology needs, would be lost with them. Take DistributedDataParallel (torchrun or accelerate), or "
                "one device: CUDA_VISIBLE_DEVICES=0."
            )
        if self.values.grad is None:
            self.gradient = None

    def collect(self, gradient: Tensor) -> None:
        """Add dL/dz, of `shape`, to what the micro-batches of this step have brought."""
        began = time.perf_counter()
        flat = gradient.detach().flatten()
        flat = flat.to(torch.float32, copy=True) if self.watched is None else flat.index_select(0, self.watched).float()
        self.gradient = flat if self.gradient is None else self.gradient.add_(flat)
        self.seconds += time.perf_counter() - began

    def passed(self) -> None:
        """A backward pass has reached the values; not counted in compiled code, which a number would compile anew."""
        if self.attendance is not None and not torch.compiler.is_compiling():
            self.attendance.passed(self)

    def extra_repr(self) -> str:
        """k of n, for print(model)."""
        return f"{len(self.indices)} of {self.numel} alive, shape={tuple(self.shape)}"


def check_places(places: Tensor, n: int, name: str) -> None:
    """Refuse places that no honest file has.

    Raises:
        ValueError: a place lies outside of the n there are or lives twice, or these are no whole numbers in one row.
    """
    if not isinstance(places, Tensor):
        raise ValueError(f"{name}: the places of the living weights are damaged: {shown(places)}, expected a tensor.")
    if places.is_meta:
        return
    whole = places.dim() == 1 and places.dtype in (torch.int32, torch.int64)
    if not whole or bool((places < 0).any() or (places >= n).any()) or len(places.unique()) != len(places):
        raise ValueError(
            f"{name}: the places of the living weights are damaged; expected {places.numel()} different numbers in "
            f"[0, {n}), int32 or int64. The file is corrupt or was written for another model; fetch it again."
        )


class _Scatter(torch.autograd.Function):
    """z = base + values at their places; dL/dvalues = dL/dz there."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, base: Tensor | None, weight: SparseWeight) -> Tensor:
        ctx.weight, ctx.has_base, ctx.probing = weight, base is not None, weight.probing
        ctx.save_for_backward(indices)
        if weight.collecting:
            weight.start_collecting()
        if base is None:
            whole = torch.zeros(weight.numel, dtype=values.dtype, device=values.device)
        else:
            whole = base.detach().to(values.dtype, copy=True).flatten()
        if not weight.probing:
            whole.index_add_(0, indices, values)
        return whole.view(weight.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (indices,) = ctx.saved_tensors
        if ctx.weight.collecting:
            ctx.weight.collect(gradient)
        if ctx.needs_input_grad[0]:
            ctx.weight.passed()
        values = gradient.flatten().index_select(0, indices)
        base = gradient if ctx.has_base and ctx.needs_input_grad[2] else None
        return (torch.zeros_like(values) if ctx.probing else values), None, base, None
