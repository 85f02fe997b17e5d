"""What is shared among processes: by FSDP2 parameters, in pieces of rows; by tensor parallelism heads of attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This process's piece of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, a copy, for which all of its processes must ask; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def heads_split_over(attention: nn.Module) -> dist.ProcessGroup | None:
    """The processes among which tensor parallelism shares an attention layer's heads; None if each has all."""
    for parameter in attention.parameters():
        if isinstance(parameter, DTensor):
            axes = [axis for axis, placement in enumerate(parameter.placements) if placement.is_shard()]
            if axes:
                return parameter.device_mesh.get_group(axes[0])
    return None


def mean_of_heads(total: Tensor, heads: int, over: dist.ProcessGroup | None) -> Tensor:
    """The mean of what was summed over heads, in float32 or better.

    Args:
        total: the sum over the heads that are here.
        heads: how many those are.
        over: the processes that have the others; None where all are here. All of them must call.
    """
    if over is None:
        return total / heads
    count = torch.tensor(float(heads), device=total.device)
    total = total.contiguous()
    dist.all_reduce(total, group=over)
    dist.all_reduce(count, group=over)
    return total / count


class Piece(NamedTuple):
    """Which entries of a tensor (k, ...) are here.

    Args:
        start: the first.
        length: how many; may be 0.
        group: the processes that have the others; None where all are here.
    """

    start: int
    length: int
    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, tensor: Tensor) -> Piece:
        """The piece that is here; of a tensor that is not sharded, all of it.

        Raises:
            ValueError: it is not cut along its first dimension alone, in pieces as FSDP2 makes them.
        """
        if not isinstance(tensor, DTensor):
            return cls(0, len(tensor), None)
        axes = [axis for axis, placement in enumerate(tensor.placements) if not placement.is_replicate()]
        if not axes:
            return cls(0, len(tensor), None)
        mesh, axis, length = tensor.device_mesh, axes[0], len(local(tensor))
        size = -(-len(tensor) // mesh.size(axis))  # as torch.chunk: all pieces but the last ones have it
        start = min(len(tensor), mesh.get_local_rank(axis) * size)
        if len(axes) > 1 or not tensor.placements[axis].is_shard(0) or length != min(size, len(tensor) - start):
            raise ValueError(f"A tensor {tuple(tensor.shape)} is cut as {tensor.placements}; expected pieces of rows.")
        return cls(start, length, mesh.get_group(axis))

    def slots(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Of (c,) indices into the whole: which of them are here, (c,) bool; and where in the piece, (those,) int64."""
        here = (indices >= self.start) & (indices < self.start + self.length)
        return here, indices[here] - self.start

    def mean(self, part: Tensor) -> Tensor:
        """The mean of numbers of which each process has a part, (); nan where nobody has any."""
        total = torch.stack([part.double().sum(), part.new_full((), part.numel(), dtype=torch.double)])
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        return total[0] / total[1]
