"""Max-min diversity: every next token is the one farthest from all taken (Gonzalez, 1985; for visual tokens DivPrune,
Alvar et al., CVPR 2025, https://arxiv.org/abs/2503.02175)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def select(
    features: Tensor,
    importance: Tensor,
    k: int,
    config: object = None,
    *,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Farthest-point order on d_ij = 1 - cos(x_i, x_j); the first token is the one whose nearest other is farthest.

    Args:
        features: (B, N, D) float32.
        importance: unused.
        k: tokens to take.
        config: unused.
        groups: unused.
        valid: (B, N) bool or None; tokens marked False are never taken and repel nothing.

    Returns:
        (B, k) long, in the order taken; equal distances by rising index.
    """
    batch, n, _ = features.shape
    directions = F.normalize(features, dim=-1)
    distance = 1 - torch.bmm(directions, directions.transpose(1, 2))
    barred = torch.zeros(batch, n, dtype=torch.bool, device=features.device) if valid is None else ~valid
    alone = torch.eye(n, dtype=torch.bool, device=features.device) | barred.unsqueeze(1)
    nearest = distance.masked_fill(alone, torch.inf).amin(-1)
    rows = torch.arange(batch, device=features.device)
    order = torch.empty(batch, k, dtype=torch.long, device=features.device)
    for step in range(k):
        chosen = nearest.masked_fill(barred, -torch.inf).argmax(1)
        order[:, step] = chosen
        barred = barred.scatter(1, chosen.unsqueeze(1), True)
        from_chosen = distance[rows, chosen]
        nearest = from_chosen if step == 0 else torch.minimum(nearest, from_chosen)
    return order
