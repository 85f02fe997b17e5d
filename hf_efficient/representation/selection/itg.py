"""ITG, importance-aware token generation: the K tokens whose distribution is closest to that of all N."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.maths.kernel import TokenKernel
from hf_efficient.representation.maths.kmeans import cluster_weights, lloyd, medoids
from hf_efficient.representation.maths.mixture import Mixture, sum_by
from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.maths.steps import take_best

from . import id_pruner
from .id_pruner import part_of


@torch.no_grad()
def generate(
    features: Tensor,
    importance: Tensor,
    k: int,
    config: TokenPrunerConfig,
    *,
    kernel: TokenKernel | None = None,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Mixture:
    """Importance-weighted k-means from `config.centers_source`: min over Z of sum_i w_i min_k |x_i - z_k|².

    That minimum is the squared Wasserstein-2 distance from the weighted tokens to the nearest distribution on K atoms.
    The steps keep every initial center in its own cluster, so that none is ever empty and the K anchors are distinct.

    Args:
        features: (B, N, D) float32.
        importance: (B, N) float32, >= 0: p; the weights are w_i = (p_i / mean p)^eta.
        k: tokens to generate, 1 <= k <= N.
        config: `lloyd_steps`, `centroid_share` (beta), `importance_power` (eta), `initial_centers`, and what
            ID-Pruner reads.
        kernel: of the features, if it is made already.
        groups: (B, N) long or None: tile or frame of every token, for the quotas of the initial centers.
        valid: (B, N) bool or None; tokens marked False have no part in any token.

    Returns:
        z_k = beta (weighted mean of cluster k) + (1 - beta) (its anchor, the member nearest to that mean), as long as
        its members are in the weighted mean. O(N·K·D) per step; memory O(N·(D + K)) and that of the initial centers.
    """
    weights = cluster_weights(importance, valid, config.importance_power)
    if config.centers_source == "farthest_first":
        initial = farthest_first(features, importance, k, config, groups=groups, valid=valid)
    else:
        chosen = id_pruner.choose(features, importance, k, config, groups=groups, valid=valid, kernel=kernel)
        initial = chosen.order
    initial = initial.sort(dim=1).values
    centres, assignment = lloyd(features, weights, initial, config.lloyd_steps)
    anchors = medoids(features, centres, assignment, valid)
    order = anchors.argsort(dim=1)
    anchors, assignment = anchors.gather(1, order), order.argsort(dim=1).gather(1, assignment)
    share = weights / sum_by(assignment, weights.unsqueeze(-1), k).squeeze(-1).gather(1, assignment)
    is_anchor = torch.zeros_like(weights).scatter(1, anchors, 1.0)
    mix = config.centroid_share * share + (1 - config.centroid_share) * is_anchor
    return Mixture(anchors, assignment, mix, keep_norm=True)


def farthest_first(
    x: Tensor,
    importance: Tensor,
    k: int,
    config: TokenPrunerConfig,
    *,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Important tokens far apart: first argmax p_i, then argmax_i p_i^(1/2) min_{j taken} |x_i - x_j|².

    k-means++ (Arthur and Vassilvitskii, 2007) draws with such probabilities; here the largest is taken. Arguments as of
    `generate`.

    Returns:
        (B, k) long, distinct, in the order taken; quotas as with ID-Pruner. O(N·(N + k)·D) time, or O(N·k·D) where the
        matrix of all pairs of a unit would be larger than `MAX_STORED`; memory O(B·N·D), and that many numbers.
    """
    if len(parts := id_pruner.fitting_parts(*importance.shape)) > 1:
        inputs = [(x[s], importance[s], part_of(groups, s), part_of(valid, s)) for s in parts]
        return torch.cat([farthest_first(y, p, k, config, groups=g, valid=v) for y, p, g, v in inputs])
    scale = cluster_weights(importance, valid)
    if valid is not None:
        scale = scale.masked_fill(~valid, -torch.inf)
    quota = Quota.of(importance, k, config, groups, valid)
    order = torch.zeros(len(x), k, dtype=torch.long, device=x.device)
    y = x - tokens_at(x, scale.argmax(1, keepdim=True))  # distances stay as they are, and are rounded less
    squares, products = y.square().sum(-1), products_with(y)
    away, scores = torch.full_like(importance, torch.inf), scale
    for step in range(k):
        chosen = take_best(scores, order, step, quota)
        distance = squares + squares.gather(1, chosen) - 2 * products(chosen)
        away = torch.minimum(away, distance)
        scores = scale * away.clamp_min(1e-30)
    return order


def tokens_at(x: Tensor, indices: Tensor) -> Tensor:
    """(B, 1, D): of every unit of x (B, N, D) the token at its index (B, 1)."""
    return x.gather(1, indices.unsqueeze(2).expand(-1, -1, x.shape[-1]))


def products_with(x: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from indices (B, 1) to inner products (B, N) of all tokens of x (B, N, D) with the tokens there."""
    if x.shape[1] ** 2 > id_pruner.MAX_STORED:
        return lambda indices: torch.bmm(x, tokens_at(x, indices).transpose(1, 2)).squeeze(2)
    products = torch.bmm(x, x.transpose(1, 2))
    return lambda indices: tokens_at(products, indices).squeeze(1)
