"""ID-Pruner: importance and diversity-aware coverage, measured apart and joined in one submodular objective."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import TokenPrunerConfig
from ..importance import shares


def select(
    features: Tensor,
    importance: Tensor,
    k: int,
    config: TokenPrunerConfig,
    *,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Greedy maximiser of F(S) = l * sum_S p / sum_TopK p + (1 - l) * sum_i pi_i max_{j in S} k_ij under |S| = k.

    F is monotone and submodular, so greedy reaches at least 1 - 1/e of the optimum (1/2 with quotas).

    Args:
        features: (B, N, D) float32.
        importance: (B, N) float32, >= 0: p.
        k: tokens to take, 1 <= k <= N.
        config: gives l (`importance_weight`), a of pi (`coverage_mix`), `kernel` and rho (`min_group_share`).
        groups: (B, N) long or None: tile or frame of every token, for the quotas.
        valid: (B, N) bool or None; tokens marked False are neither taken nor covered.

    Returns:
        (B, k) long, in the order taken; equal gains by rising index.
    """
    batch, n, _ = features.shape
    p = shares(importance, valid)
    pi = coverage_weights(p, config.coverage_mix, valid)
    similarity = kernel_matrix(features, config.kernel, valid)
    bonus = config.importance_weight * p / p.topk(k, dim=1).values.sum(1, keepdim=True)
    barred = torch.zeros_like(p, dtype=torch.bool) if valid is None else ~valid
    quota = (
        Quota(pi, k, config.min_group_share, groups, valid) if groups is not None and config.min_group_share else None
    )
    weights = ((1 - config.importance_weight) * pi).unsqueeze(-1)
    covered = torch.zeros_like(p)
    rows = torch.arange(batch, device=p.device)
    order = torch.empty(batch, k, dtype=torch.long, device=p.device)
    for step in range(k):
        gain = torch.bmm((similarity - covered.unsqueeze(1)).relu_(), weights).squeeze(-1) + bonus
        closed = barred if quota is None else barred | quota.closed()
        chosen = gain.masked_fill(closed, -1).argmax(1)
        order[:, step] = chosen
        barred = barred.scatter(1, chosen.unsqueeze(1), True)
        covered = torch.maximum(covered, similarity[rows, chosen])
        if quota is not None:
            quota.take(chosen)
    return order


def coverage_weights(p: Tensor, mix: float, valid: Tensor | None) -> Tensor:
    """pi_i = a p_i + (1 - a) / N over the valid tokens: (B, N), each row sums to 1. `p`: (B, N) shares."""
    return mix * p + (1 - mix) * shares(torch.ones_like(p), valid)


def kernel_matrix(features: Tensor, kernel: str, valid: Tensor | None) -> Tensor:
    """Similarity k_ij in [0, 1] of all pairs of tokens, unmoved by adding one vector to all tokens.

    "rbf": exp(-2 |x_i - x_j|² / mean_ab |x_a - x_b|²); "cosine": (1 + cos(x_i - m, x_j - m)) / 2, m the mean token.

    Args:
        features: (B, N, D) float32.
        kernel: "rbf" or "cosine".
        valid: (B, N) bool or None; only valid tokens shape m and the mean distance.

    Returns:
        (B, N, N) float32.
    """
    weights = shares(features.new_ones(features.shape[:2]), valid).unsqueeze(-1)
    centred = features - (features * weights).sum(1, keepdim=True)
    if kernel == "cosine":
        directions = F.normalize(centred, dim=-1)
        return torch.bmm(directions, directions.transpose(1, 2)).add_(1).mul_(0.5).clamp_(0, 1)
    square = (centred * centred).sum(-1, keepdim=True)
    spread = (square * weights).sum(1, keepdim=True)  # half of the mean squared distance
    # tokens that differ by rounding only are equal tokens: their noise must not be blown up to structure
    magnitude = (features * features).sum(-1, keepdim=True).mul(weights).sum(1, keepdim=True)
    inverse = torch.where(spread > 1e-12 * magnitude, 1 / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0)
    square = square * inverse
    exponent = torch.baddbmm(-square - square.transpose(1, 2), centred, centred.transpose(1, 2) * (2 * inverse))
    return exponent.clamp_(max=0).exp_()


class Quota:
    """Least numbers per group, l_g = floor(rho * k * mass_g) with mass_g the group's share of pi, kept exactly.

    A step is open to a group while enough later steps remain for what the other groups are still owed. The sets that can
    be completed this way form a matroid, hence the 1/2 of greedy.
    """

    def __init__(self, pi: Tensor, k: int, rho: float, groups: Tensor, valid: Tensor | None) -> None:
        """`pi`: (B, N) shares; `groups`: (B, N) long, >= 0; `valid`: (B, N) bool or None."""
        self.groups = groups
        count = int(groups.max()) + 1
        member = torch.ones_like(pi) if valid is None else valid.to(pi.dtype)
        size = pi.new_zeros(pi.shape[0], count).scatter_add(1, groups, member)
        mass = pi.new_zeros(pi.shape[0], count).scatter_add(1, groups, pi)
        # the epsilon keeps a share such as 4 * 0.25 from being rounded below its whole number
        self.owed = torch.minimum((rho * k * mass + 1e-4).floor(), size)
        self.left = torch.full_like(self.owed[:, :1], k)

    def closed(self) -> Tensor:
        """(B, N) bool: tokens whose taking would leave too few steps for what other groups are owed."""
        spare = self.left - self.owed.sum(1, keepdim=True)
        return (spare <= 0) & (self.owed.gather(1, self.groups) <= 0)

    def take(self, chosen: Tensor) -> None:
        """Note the tokens (B,) just taken."""
        group = self.groups.gather(1, chosen.unsqueeze(1))
        self.owed = (self.owed - torch.zeros_like(self.owed).scatter(1, group, 1)).clamp_min(0)
        self.left = self.left - 1
