"""Weighted k-means of tokens: weights from importance, a fixed number of steps, the members nearest to the means."""

from __future__ import annotations

import torch
from torch import Tensor

from .mixture import nearest, sum_by


def cluster_weights(importance: Tensor, valid: Tensor | None, power: float = 0.5) -> Tensor:
    """w = (p / mean p)^power, (B, N) float32: 0 for invalid tokens alone, so that every cluster has a mean."""
    peak = importance.amax(1, keepdim=True)
    weights = (importance / torch.where(peak > 0, peak, 1)).clamp_min(1e-6) ** power
    weights = weights / weights.mean(1, keepdim=True)
    return weights if valid is None else weights * valid


def lloyd(x: Tensor, weights: Tensor, initial: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Weighted k-means in a fixed number of steps, every initial center held in its own cluster.

    Args:
        x: (B, N, D) float32.
        weights: (B, N) float32, > 0 at the initial centers.
        initial: (B, K) long, the tokens that clusters start from, distinct.
        steps: new assignments and new means after the first.

    Returns:
        Weighted means (B, K, D) of the clusters, and the cluster (B, N) of every token. The error never rises.
    """
    k = initial.shape[1]
    own = torch.arange(k, device=x.device).expand_as(initial)
    centres = x.gather(1, initial.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    weights = weights.unsqueeze(-1)
    weighted = x * weights
    for _ in range(steps + 1):
        assignment = nearest(x, centres).scatter(1, initial, own)
        centres = sum_by(assignment, weighted, k) / sum_by(assignment, weights, k)
    return centres, assignment


def medoids(x: Tensor, centres: Tensor, assignment: Tensor, valid: Tensor | None) -> Tensor:
    """The member of every cluster nearest to its centre, (B, K) long; clusters share no member, so all are distinct."""
    offset = x - centres.gather(1, assignment.unsqueeze(-1).expand_as(x))
    distance = offset.square().sum(-1)
    if valid is not None:
        distance = distance.masked_fill(~valid, torch.inf)
    least = distance.new_full(centres.shape[:2], torch.inf).scatter_reduce(1, assignment, distance, "amin")
    indices = torch.arange(x.shape[1], device=x.device).expand_as(assignment)
    behind = indices.masked_fill(distance > least.gather(1, assignment), x.shape[1])
    return behind.new_full(centres.shape[:2], x.shape[1]).scatter_reduce(1, assignment, behind, "amin")
