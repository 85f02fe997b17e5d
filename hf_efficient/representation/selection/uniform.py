"""An even grid of tokens: what a coarser look at the image would keep."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def select(
    features: Tensor, importance: Tensor, k: int, config: Any = None, *, groups: Any = None, valid: Tensor | None = None
) -> Tensor:
    """Tokens spaced evenly over the raster; where that is unknown (N not a square), evenly over the sequence.

    Args:
        features: (B, N, D); only its shape counts.
        importance: unused.
        k: tokens to take.
        config: unused.
        groups: unused.
        valid: (B, N) bool or None; they are then spaced evenly over the valid tokens in sequence.

    Returns:
        (B, k) long, rising.
    """
    batch, n = features.shape[:2]
    side = math.isqrt(n)
    if valid is not None:
        first = valid.byte().sort(dim=1, descending=True, stable=True).indices  # valid positions first, in order
        count = valid.sum(1, keepdim=True)
        steps = (torch.arange(k, device=features.device) * 2 + 1) * count // (2 * k)
        return first.gather(1, steps)
    points = grid_points(side, side, k) if side * side == n else [(2 * i + 1) * n // (2 * k) for i in range(k)]
    return torch.tensor(points, device=features.device).expand(batch, -1)


def grid_points(rows: int, columns: int, k: int) -> list[int]:
    """Distinct positions on a rows x columns raster, in lines of near-equal numbers, each centred in its cell.

    Returns:
        k rising indices into the flattened raster.
    """
    lines = max(1, min(rows, k, round(math.sqrt(k * rows / columns))))
    lines = max(lines, -(-k // columns))  # no line can hold more points than columns
    points = []
    for line in range(lines):
        row = (2 * line + 1) * rows // (2 * lines)
        share = (line + 1) * k // lines - line * k // lines
        points += [row * columns + (2 * i + 1) * columns // (2 * share) for i in range(share)]
    return points
