"""Which places live, in few bytes: as bits, eight places in a byte; or as gaps, a byte for each living place."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def pack(mask: Tensor) -> Tensor:
    """(n,) bool -> (ceil(n / 8),) uint8; the bits behind the last place are 0."""
    padded = torch.nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8))
    return (padded.view(-1, 8).to(torch.uint8) * _BITS.to(mask.device)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, n: int) -> Tensor:
    """(ceil(n / 8),) uint8 -> (n,) bool.

    Raises:
        ValueError: the bits are of another number of places, or one behind the last place is set.
    """
    if bits.dtype != torch.uint8 or bits.dim() != 1 or len(bits) != -(-n // 8):
        raise ValueError(f"a bitmap of {n} places is {-(-n // 8)} bytes; got {tuple(bits.shape)} of {bits.dtype}.")
    mask = bits.unsqueeze(1).bitwise_and(_BITS.to(bits.device)).ne(0).flatten()
    if bool(mask[n:].any()):
        raise ValueError(f"a bitmap of {n} places has bits set behind the last of them.")
    return mask[:n]


def add(bits: Tensor, places: Tensor) -> None:
    """Set the bits of unique `places`, in place."""
    byte, bit = places // 8, _BITS.to(bits.device)[places % 8]
    bits.index_add_(0, byte, torch.where(bits[byte] & bit == 0, bit, torch.zeros_like(bit)))


def to_gaps(mask: Tensor) -> Tensor:
    """(n,) bool -> (g,) uint8: before each living place, how many dead ones; 255 means 255 dead ones and no living yet.

    Shorter than bits where less than one place in eight lives.
    """
    living = mask.flatten().nonzero().flatten()
    dead = living.diff(prepend=living.new_tensor([-1])) - 1
    ends = (dead // 255 + 1).cumsum(0) - 1  # where in the result a living place stands
    gaps = torch.full((int(ends[-1]) + 1 if len(ends) else 0,), 255, dtype=torch.uint8)
    gaps[ends] = (dead % 255).to(torch.uint8)
    return gaps


def from_gaps(gaps: Tensor, n: int) -> Tensor:
    """(g,) uint8 -> (n,) bool.

    Raises:
        ValueError: not gaps, or they lead beyond the last place.
    """
    if gaps.dtype != torch.uint8 or gaps.dim() != 1:
        raise ValueError(f"gaps are bytes in one dimension; got {tuple(gaps.shape)} of {gaps.dtype}.")
    living = gaps != 255
    places = (gaps.long() + living).cumsum(0)[living] - 1
    if len(places) and int(places[-1]) >= n:
        raise ValueError(f"gaps lead to place {int(places[-1])} of {n}.")
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, places, True)
