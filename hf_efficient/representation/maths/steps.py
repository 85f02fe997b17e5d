"""What methods that take one token after the other share: cosines, one step, and a draw."""

from __future__ import annotations

import torch
from torch import Tensor

from .quota import Quota


def cosines(features: Tensor) -> Tensor:
    """All pairwise cosines (B, N, N) of features (B, N, D); of a zero vector 0."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    return torch.bmm(unit, unit.transpose(1, 2))


def take_best(scores: Tensor, order: Tensor, step: int, quota: Quota | None = None) -> Tensor:
    """The largest score (B, N) of tokens that are not in order[:, :step], written to order[:, step]; (B, 1) long.

    With `quota`, groups that have to leave the steps to others are passed over.
    """
    if quota is not None:
        scores = scores.masked_fill(quota.closed(), -torch.inf)
    chosen = scores.scatter(1, order[:, :step], -torch.inf).argmax(1, keepdim=True)
    order[:, step : step + 1] = chosen
    if quota is not None:
        quota.take(chosen)
    return chosen


def row_of(matrix: Tensor, chosen: Tensor) -> Tensor:
    """Row `chosen` (B, 1) of every matrix (B, N, N): (B, N)."""
    return matrix.gather(1, chosen.unsqueeze(-1).expand(-1, -1, matrix.shape[2])).squeeze(1)


SEED = 20260  # one constant, so that a draw depends neither on a config nor on the rest of the batch


def fixed_draw(n: int, device: torch.device | None = None) -> Tensor:
    """The same permutation of n tokens whenever it is asked for, (n,) long; torch's own generator is not touched."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(SEED), device="cpu").to(device)
