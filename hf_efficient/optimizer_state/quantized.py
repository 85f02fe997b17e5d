"""Optimizer states in 8 bits and fewer, read and written entry by entry: bitsandbytes' and torchao's.

A block of (mostly 256) values shares a scale; each value is the nearest of 256 numbers times that scale.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

_BLOCK = 256  # of bitsandbytes


def read(state: MutableMapping[str, Any], name: str) -> Tensor:
    """A state tensor as floating-point numbers, (n,) or (rows, n): itself, or a decoded copy."""
    moment: Tensor = state[name]
    if moment.dtype == torch.uint8:
        codes, table, scales = _parts(state, name)
        return (table[codes.long()] * _per_entry(scales, codes.shape[-1])).view(moment.shape)
    return moment.dequantize() if hasattr(moment, "codes") else moment  # type: ignore[no-untyped-call]


def write(state: MutableMapping[str, Any], name: str, indices: Tensor, values: Tensor) -> None:
    """Set some entries of a state tensor, in place.

    Args:
        state: of a parameter.
        name: of the tensor, (n,) or (rows, n).
        indices: (c,) int64, along the last dimension.
        values: a scalar, (c,) or (rows, 1).
    """
    moment: Tensor = state[name]
    if moment.dtype == torch.uint8:
        codes, table, scales = _parts(state, name)
        for row in range(len(codes)):
            value = values.flatten()[row] if values.dim() > 1 else values
            _write_blocks(codes[row], table, scales[row], indices, value.expand(len(indices)))
    elif hasattr(moment, "codes"):
        whole = read(state, name)
        whole[..., indices] = values.to(whole)
        moment.copy_(whole)
    else:
        moment[..., indices] = values.to(moment).expand(*moment.shape[:-1], len(indices))


def replace(state: MutableMapping[str, Any], name: str, whole: Tensor) -> None:
    """Replace a state tensor by another one of any length, (n',) or (rows, n')."""
    moment: Tensor = state[name]
    if moment.dtype != torch.uint8:
        state[name] = whole  # torchao computes with plain tensors where a length does not suit its blocks
        return
    _, table, _ = _parts(state, name)
    n = whole.shape[-1]
    rows = whole.reshape(-1, n).float()
    scales = torch.stack([_largest(row) for row in rows])
    state[name] = _nearest(rows / _per_entry(scales, n).clamp_min(1e-38), table).view(whole.shape)
    state[f"absmax{name[-1]}"] = scales.view(*whole.shape[:-1], -1)


def _parts(state: MutableMapping[str, Any], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of bitsandbytes' `state1` or `state2`: codes (rows, n), table (256,), scales (rows, blocks); views.

    A parameter has one row, of all its elements in order; AdEMAMix has two averages of it, and two rows.
    """
    number = name[-1]
    scales: Tensor = state[f"absmax{number}"]
    scales = scales.view(-1, scales.shape[-1])
    return state[name].view(len(scales), -1), state[f"qmap{number}"], scales


def _write_blocks(codes: Tensor, table: Tensor, scales: Tensor, indices: Tensor, values: Tensor) -> None:
    """Code values into (n,) codes. A block keeps its scale, and its other codes, unless a value is beyond the scale."""
    blocks, values = indices // _BLOCK, values.to(scales)
    least = torch.zeros_like(scales).scatter_reduce_(0, blocks, values.abs(), "amax")
    for block in (least > scales).nonzero().flatten().tolist():
        part = slice(block * _BLOCK, (block + 1) * _BLOCK)
        kept = table[codes[part].long()] * scales[block]
        scales[block] = least[block]
        codes[part] = _nearest(kept / scales[block], table)
    codes[indices] = _nearest(values / scales[blocks].clamp_min(1e-38), table)


def _nearest(numbers: Tensor, table: Tensor) -> Tensor:
    """Codes of the nearest entries of a rising table, uint8 of the numbers' shape."""
    above = torch.searchsorted(table, numbers.contiguous()).clamp_(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    return torch.where(numbers - low < high - numbers, above - 1, above).to(torch.uint8)


def _per_entry(scales: Tensor, n: int) -> Tensor:
    """Scales of blocks (rows, blocks) -> of entries (rows, n)."""
    return scales.repeat_interleave(_BLOCK, -1)[..., :n]


def _largest(row: Tensor) -> Tensor:
    """(n,) -> (blocks,): the largest absolute value of each block."""
    return torch.nn.functional.pad(row.abs(), (0, -len(row) % _BLOCK)).view(-1, _BLOCK).amax(1)
