"""One budget for several tiles or frames, shared by what there is to see in each."""

from __future__ import annotations

import torch
from torch import Tensor

from .importance import shares


def share_budget(weights: Tensor, most: Tensor, total: int | Tensor, least: int = 0) -> Tensor:
    """`total` tokens shared in proportion to `weights`, between `least` and `most` each; the sum is exact.

    Whole parts first; what is left goes one by one to those with the largest weights that have room.

    Args:
        weights: (B, U) float32 >= 0.
        most: (U,) or (B, U) long, tokens there are.
        total: tokens to share, one number or (B, 1) long, U * least <= total <= sum of `most`.
        least: tokens that each gets at least (or all it has).

    Returns:
        (B, U) long, rows sum to `total`.
    """
    given = (shares(weights) * total + 1e-4).floor().long().clamp_min(least).minimum(most)
    order = weights.sort(dim=1, descending=True, stable=True).indices
    while bool((left := total - given.sum(1, keepdim=True)).any()):
        sorted_given, sorted_most = given.gather(1, order), most.expand_as(given).gather(1, order)
        gains = (sorted_given < sorted_most) & (left > 0)
        loses = (sorted_given > least) & (left < 0)  # where the least parts together were too much
        first, last = gains.cumsum(1) <= left, loses.flip(1).cumsum(1).flip(1) <= -left
        step = (gains & first).long() - (loses & last).long()
        given = given + torch.zeros_like(given).scatter(1, order, step)
    return given


def information(features: Tensor) -> Tensor:
    """How much there is to see in units (U, N, D): mean distance of their tokens from their mean, (U,) float32."""
    x = features.float()
    return torch.linalg.vector_norm(x - x.mean(1, keepdim=True), dim=-1).mean(1)
