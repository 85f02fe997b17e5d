"""Masks in few bytes: as a bitmap, a bit for each entry; or as gaps, a byte for each active entry."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def pack(mask: Tensor) -> Tensor:
    """(n,) bool -> (ceil(n / 8),) uint8; bits after the last entry are 0."""
    padded = torch.nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8))
    return (padded.view(-1, 8).to(torch.uint8) * _BITS.to(mask.device)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, n: int) -> Tensor:
    """(ceil(n / 8),) uint8 -> (n,) bool.

    Raises:
        ValueError: the bitmap has another length or dtype, or a bit after the last entry is set.
    """
    if bits.dtype != torch.uint8 or bits.dim() != 1 or len(bits) != -(-n // 8):
        raise ValueError(f"a bitmap of {n} entries is {-(-n // 8)} bytes; got {tuple(bits.shape)} of {bits.dtype}.")
    mask = bits.unsqueeze(1).bitwise_and(_BITS.to(bits.device)).ne(0).flatten()
    if bool(mask[n:].any()):
        raise ValueError(f"a bitmap of {n} entries has bits set after the last of them.")
    return mask[:n]


def add(bits: Tensor, indices: Tensor) -> None:
    """Set the bits of unique `indices`, in place."""
    byte, bit = indices // 8, _BITS.to(bits.device)[indices % 8]
    bits.index_add_(0, byte, torch.where(bits[byte] & bit == 0, bit, torch.zeros_like(bit)))


def to_gaps(mask: Tensor) -> Tensor:
    """(n,) bool -> (g,) uint8: the number of inactive entries before each active one; 255 stands for 255 inactive ones.

    Shorter than a bitmap below a density of about 1/8.
    """
    active = mask.flatten().nonzero().flatten()
    between = active.diff(prepend=active.new_tensor([-1])) - 1
    ends = (between // 255 + 1).cumsum(0) - 1  # position of each active entry in the result
    gaps = torch.full((int(ends[-1]) + 1 if len(ends) else 0,), 255, dtype=torch.uint8)
    gaps[ends] = (between % 255).to(torch.uint8)
    return gaps


def from_gaps(gaps: Tensor, n: int) -> Tensor:
    """(g,) uint8 -> (n,) bool.

    Raises:
        ValueError: not gaps, or they lead beyond the last entry.
    """
    if gaps.dtype != torch.uint8 or gaps.dim() != 1:
        raise ValueError(f"gaps are bytes in one dimension; got {tuple(gaps.shape)} of {gaps.dtype}.")
    active = gaps != 255
    indices = (gaps.long() + active).cumsum(0)[active] - 1
    if len(indices) and int(indices[-1]) >= n:
        raise ValueError(f"gaps lead to index {int(indices[-1])} of {n} entries.")
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, indices, True)
