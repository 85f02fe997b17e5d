"""Masks as bits: eight places in a byte, the first in the lowest bit."""

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
