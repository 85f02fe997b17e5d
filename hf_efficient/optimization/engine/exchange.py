"""Second copies of weights on the CPU: memory that is kept for them, and storage exchanged where nobody else has it.

Fresh memory costs the CPU more than the copy that is written to it; on a GPU torch keeps freed memory by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_efficient.compat.torch import storage_id, storage_uses

LEAST = 1 << 16  # bytes: a smaller weight is copied in less time than its storage is exchanged


class Buffers:
    """Memory for one copy of each weight, from step to step. What is taken is not there until it is given back."""

    def __init__(self) -> None:
        self._free: dict[Tensor, Tensor] = {}

    def take(self, parameter: Tensor, like: Tensor) -> Tensor:
        """A tensor such as `like`, of any content."""
        buffer = self._free.pop(parameter, None)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype or buffer.device != like.device:
            return torch.empty_like(like)
        return buffer

    def give(self, parameter: Tensor, buffer: Tensor) -> None:
        """Keep the memory for the next step."""
        if buffer.device.type == "cpu":
            self._free[parameter] = buffer

    def clear(self) -> None:
        """Let go of it."""
        self._free.clear()

    @property
    def nbytes(self) -> int:
        """Of what is kept."""
        return sum(buffer.nbytes for buffer in self._free.values())


def can_exchange(parameter: Tensor, direction: Tensor) -> bool:
    """Whether a weight may lie elsewhere for the time of a step: nobody else, tied weights among them, has its storage.

    Args:
        parameter: the weight.
        direction: that it is to be moved along.
    """
    return (
        parameter.device.type == "cpu"
        and parameter.nbytes >= LEAST
        and type(parameter) in (nn.Parameter, Tensor)
        and parameter.layout == direction.layout == torch.strided
        and storage_uses(parameter) == 1
    )


@contextmanager
def exchanged(
    moves: dict[Tensor, Tensor], scale: float, buffers: Buffers, over: bool = False
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside the block p lies in another storage, at p + scale · d; after it, however it ends, in its own.

    If somebody has got hold of the other storage meanwhile (a state dict, a view), or has cast the weight, it stays
    where it is, at its old value: what they have goes on to be the weight.

    Args:
        moves: d of each p; p are those that `can_exchange`. It is emptied, for the memory of the d.
        scale: of all d.
        buffers: where the other storage is from, and where it goes.
        over: that storage is the memory of d itself, which is of no use afterwards.

    Yields:
        Each p, with its old value.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            while moves:
                p, d = moves.popitem()
                saved.append((p, p.detach()))
                # not set_(), after which gradients come by a new node, without the hooks in which DDP averages them
                p.data = torch.add(p, d, alpha=scale, out=d if over else buffers.take(p, p))
                del d
        yield saved
    finally:
        with torch.no_grad():
            for p, w in saved:
                _bring_back(p, w, buffers)


def _bring_back(p: Tensor, w: Tensor, buffers: Buffers) -> None:
    if storage_id(p) == storage_id(w):  # broken off before it was exchanged
        return
    if storage_uses(p) > 1 or (p.dtype, p.shape, p.device) != (w.dtype, w.shape, w.device):
        p.copy_(w)
        return
    buffer = p.detach()
    p.data = w
    buffers.give(p, buffer)
