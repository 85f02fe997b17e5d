"""A weight with k active entries: their values are the one trainable tensor, their indices a buffer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_efficient.compat.torch import is_replica
from hf_efficient.reading import shown
from hf_efficient.shards import Piece, local, whole

from .pattern import Groups


class Monitor(Protocol):
    """What watches over a weight in training: `training.monitor.Monitor`."""

    has_engine: bool
    passes: dict[int, int]

    def on_backward(self, weight: SparseWeight) -> None:
        """Called at every backward pass through the weight."""


class SparseWeight(nn.Module):
    """A tensor of n entries, k of them active; the others are zero.

    An optimizer sees `values` alone, so that it keeps moments of active entries only. `values` and `indices` have the
    same order. An exchange changes single slots of both, and the optimizer's state of all other slots stays valid.

    Args:
        shape: of the whole tensor.
        k: active entries, 1 <= k <= n.
        dtype: of the values.
        device: of values and indices.

    Attributes:
        values: (k,) parameter; FSDP2 may have cut it into pieces, one a process.
        sharded: whether it has. Gradients then tell nothing of where a step begins.
        indices: (k,) int32 buffer (int64 if n >= 2^31), flat row-major indices, unique, in any order.
        collecting: while True, backward adds dL/dz to `gradient`, z being the whole tensor.
        gradient_indices: (w,) integer: the entries whose gradient is collected, the active ones first, in their order;
            None: all n.
        probing: while True, `dense` returns the tensor it is given, and the values get no gradient.
        gradient: (n,) or (w,) float32, or None.
        start: (n,) what the entries were before training, lent at steps at which the topology may read it; None: zeros.
        matrix: (matrices, rows, columns) as a topology sees them: one matrix, dimensions after 0 flattened to columns.
        input_dim: which of rows (0) and columns (1) are a layer's inputs: 1, but 0 for Conv1D of GPT-2.
        groups: of M entries, of which N are active; None: any k entries.
        budget: k at the end of training; differs from the present k only while a topology starts with more.
        memory: a topology's state of this weight (name -> tensor).
        seconds: spent on collecting.
        monitor: called at every backward pass of a weight whose topology exchanges weights; else None.

    Raises:
        ValueError: k outside of [1, n].
    """

    values: nn.Parameter
    indices: Tensor
    groups: Groups | None = None

    def __init__(
        self, shape: Sequence[int], k: int, *, dtype: torch.dtype = torch.float32, device: torch.types.Device = None
    ) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        n = self.numel
        if not 1 <= k <= n:
            raise ValueError(f"k={k} active weights of a tensor {tuple(shape)} is out of range; expected 1 to {n}.")
        indices = torch.arange(k, dtype=torch.int32 if n < 2**31 else torch.int64, device=device)
        self.values = nn.Parameter(torch.zeros(k, dtype=dtype, device=device))
        self.register_buffer("indices", indices)
        self.matrix = (1, self.shape[0], n // self.shape[0])
        self.input_dim = 1
        self.budget = k
        self.collecting = self.probing = self.sharded = False
        self.gradient_indices: Tensor | None = None
        self.gradient: Tensor | None = None
        self.start: Tensor | None = None
        self.memory: dict[str, Tensor] = {}
        self.seconds = 0.0
        self.monitor: Monitor | None = None
        self._checked: Tensor | None = None  # the `indices` that were last checked

    @property
    def numel(self) -> int:
        """n, the number of entries."""
        return math.prod(self.shape)

    @property
    def long_indices(self) -> Tensor:
        """(k,) int64: `indices` in the dtype that torch indexes with."""
        return self.indices.long()

    def set_expert_layout(self, inputs_first: bool) -> None:
        """Say that the tensor is (experts, outputs, inputs), or (experts, inputs, outputs) with `inputs_first`."""
        experts, rows, columns = self.shape
        self.input_dim = 0 if inputs_first else 1
        self.matrix = (1, experts * rows, columns) if inputs_first else (experts, rows, columns)

    @property
    def inputs(self) -> int:
        """Number of inputs, counted for each expert separately."""
        matrices, rows, columns = self.matrix
        return matrices * (rows if self.input_dim == 0 else columns)

    def input_of(self, indices: Tensor) -> Tensor:
        """The input that each of these entries multiplies, integer of the same shape."""
        matrices, rows, columns = self.matrix
        if self.input_dim == 0:
            return indices // columns
        return indices % columns if matrices == 1 else indices // (rows * columns) * columns + indices % columns

    def mask(self) -> Tensor:
        """(n,) bool: True where an entry is active."""
        mask = torch.zeros(self.numel, dtype=torch.bool, device=self.indices.device)
        return mask.index_fill_(0, self.long_indices, True)

    def inactive_indices(self) -> Tensor:
        """(n - k,) int64: the indices of all inactive entries, rising."""
        return (~self.mask()).nonzero().flatten()

    def dense(self, base: Tensor | None = None) -> Tensor:
        """The whole tensor, of `shape`: zero (or `base`) plus the values at their indices. Differentiable.

        Args:
            base: tensor of `shape` to add to, or None.

        Raises:
            ValueError: `indices` were replaced by others that are not valid for this tensor.
        """
        # some loaders replace the buffer without load_state_dict; a compiler cannot branch on a tensor's content
        if self.indices is not self._checked and not torch.compiler.is_compiling():
            self.check(self.indices, "sparse weight")
            self._checked = self.indices
        whole: Tensor = _Scatter.apply(self.values, self.indices, base, self)  # type: ignore[no-untyped-call]
        return whole

    def check(self, indices: Tensor, name: str) -> None:
        """Check indices that shall become this weight's, as `check_indices` and, of groups, `Groups.check` do."""
        check_indices(indices, self.numel, name)
        if self.groups is not None and not indices.is_meta:
            self.groups.check(indices, name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_checked": None})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # type: ignore[override]
        if f"{prefix}indices" in state_dict:
            self.check(state_dict[f"{prefix}indices"], prefix.rstrip(".") or "sparse weight")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def whole_values(self) -> Tensor:
        """(k,), detached: the values, also where each process has a piece of them; then all must ask."""
        return whole(self.values.detach())

    @torch.no_grad()
    def select(self, indices: Tensor, values: Tensor | None = None) -> None:
        """Make exactly these entries active.

        Args:
            indices: (k,) integer, unique.
            values: (k,), their values; None is zeros.
        """
        self.indices.copy_(indices)
        piece, here = Piece.of(self.values), local(self.values)
        here.zero_() if values is None else here.copy_(values[piece.start : piece.start + piece.length])

    @torch.no_grad()
    def swap(self, slots: Tensor, indices: Tensor, values: Tensor | None = None) -> None:
        """Drop the entries in these slots and grow others there; k stays.

        Args:
            slots: (c,) int64, unique: positions in `values`.
            indices: (c,) integer: inactive entries to grow.
            values: (c,), their first values; None is zeros.
        """
        self.indices[slots] = indices.to(self.indices.dtype)
        here, at = Piece.of(self.values).slots(slots)
        local(self.values)[at] = 0.0 if values is None else values[here].to(self.values.dtype)

    @torch.no_grad()
    def resize(self, kept: Tensor, indices: Tensor, values: Tensor | None = None) -> None:
        """Keep some slots and append new entries; k changes, the Parameter object stays.

        Args:
            kept: (r,) int64: slots that stay, in their new order.
            indices: (c,) integer: inactive entries to grow, appended.
            values: (c,), their first values; None is zeros.
        """
        grown = self.values.new_zeros(len(indices)) if values is None else values.to(self.values.dtype)
        values = torch.cat([self.values[kept], grown])
        self.indices = self._checked = torch.cat([self.indices[kept], indices.to(self.indices.dtype)])
        self.values.grad = None
        # autograd's accumulator keeps the old size while a graph exists; another dtype in between releases it
        self.values.data = torch.empty(0, dtype=torch.float64, device=values.device)
        self.values.data = values

    def active_gradient(self) -> Tensor:
        """(k,) float32: `gradient` of the active entries, in their order."""
        assert self.gradient is not None
        if self.gradient_indices is not None:
            return self.gradient[: len(self.indices)]
        return self.gradient.index_select(0, self.indices)  # several times faster than indexing, and takes int32

    def start_collecting(self) -> None:
        """Called by a forward. In the first of a step (no gradients yet) it clears what a skipped step left.

        Raises:
            RuntimeError: the weight is a replica of nn.DataParallel, whose gradients would be lost.
        """
        if self.collecting and is_replica(self):
            raise RuntimeError(
                "nn.DataParallel computes with copies of the layers, and the gradients of inactive weights, which the "
                "topology needs, are lost with the copies. Use DistributedDataParallel (torchrun or accelerate), or "
                "one device: CUDA_VISIBLE_DEVICES=0."
            )
        if self.values.grad is None and not self.sharded:
            self.gradient = None

    def collect(self, gradient: Tensor) -> None:
        """Add dL/dz, of `shape`, to the sum over the micro-batches of this step."""
        began = time.perf_counter()
        flat = gradient.detach().flatten()
        if self.gradient_indices is None:
            flat = flat.to(torch.float32, copy=True)
        else:
            flat = flat.index_select(0, self.gradient_indices).float()
        self.gradient = flat if self.gradient is None else self.gradient.add_(flat)
        self.seconds += time.perf_counter() - began

    def on_backward(self) -> None:
        """Called when a backward pass reaches the values; not in compiled code: a count would cause recompiling."""
        if self.monitor is not None and not torch.compiler.is_compiling():
            self.monitor.on_backward(self)

    def extra_repr(self) -> str:
        """k of n, for print(model)."""
        return f"{len(self.indices)} of {self.numel} active, shape={tuple(self.shape)}"


def check_indices(indices: Tensor, n: int, name: str) -> None:
    """Check the indices of active entries, which may come from any file.

    Args:
        indices: (k,) int32 or int64, unique, in [0, n).
        n: entries of the tensor.
        name: of the layer, for the message.

    Raises:
        ValueError: an index is out of range or appears twice, or the tensor has another dtype or dimension.
    """
    if not isinstance(indices, Tensor):
        raise ValueError(f"{name}: the indices of the active weights are damaged: {shown(indices)}, expected a tensor.")
    if indices.is_meta:
        return
    whole = indices.dim() == 1 and indices.dtype in (torch.int32, torch.int64)
    if not whole or bool((indices < 0).any() or (indices >= n).any()) or len(indices.unique()) != len(indices):
        raise ValueError(
            f"{name}: the indices of the active weights are damaged; expected {indices.numel()} different numbers in "
            f"[0, {n}), int32 or int64. The file is corrupt or was written for another model; fetch it again."
        )


class _Scatter(torch.autograd.Function):
    """z = base + values at their indices; dL/dvalues = dL/dz there."""

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
        if gradient.is_sparse:  # of nn.Embedding(sparse=True)
            gradient = gradient.to_dense()
        if ctx.weight.collecting:
            ctx.weight.collect(gradient)
        if ctx.needs_input_grad[0]:
            ctx.weight.on_backward()
        values = gradient.flatten().index_select(0, indices)
        base = gradient if ctx.has_base and ctx.needs_input_grad[2] else None
        return (torch.zeros_like(values) if ctx.probing else values), None, base, None
