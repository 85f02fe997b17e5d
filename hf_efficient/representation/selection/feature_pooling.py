"""Feature pooling: means over the cells of a coarser raster. The baseline that many methods do not beat."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.kmeans import medoids
from hf_efficient.representation.maths.mixture import Mixture, mass, sum_by
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens


@on_valid_tokens
def generate(features: Tensor, importance: Tensor, k: int, config: Any = None) -> Mixture:
    """Means over k cells in lines of near-equal numbers, as near to squares as k allows.

    Where tokens form no square, cells are stretches of the sequence. Importance plays no part.

    Args:
        features: (B, N, D) float32; only its shape counts.
        importance: unused.
        k: cells.
        config: unused.

    Returns:
        The mixture; the anchor of a cell is its member nearest to the middle.
    """
    batch, n = features.shape[:2]
    side = math.isqrt(n)
    indices = torch.arange(n, device=features.device)
    if side * side == n:
        lines = round(math.sqrt(k))  # never above the side, nor are more cells in a line
        line = indices // side * lines // side
        first, share = line * k // lines, (line + 1) * k // lines - line * k // lines
        cell = first + indices % side * share // side
        positions = torch.stack([indices // side, indices % side], dim=-1).float()
    else:
        cell, positions = indices * k // n, indices.unsqueeze(-1).float()
    cell = cell.unsqueeze(0)
    middle = sum_by(cell, positions.unsqueeze(0), k) / mass(cell, k).unsqueeze(-1)
    anchors, order = medoids(positions.unsqueeze(0), middle, cell, None).sort(dim=1)
    cell = order.argsort(dim=1).gather(1, cell)
    weights = 1 / mass(cell, k).gather(1, cell)
    return Mixture(anchors.expand(batch, -1), cell.expand(batch, -1), weights.expand(batch, -1))
