"""Least numbers of tokens for the tiles or frames inside one unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .importance import coverage_weights, shares


class Quota:
    """Lower bounds l_g = floor(rho * k * mass_g), mass_g the group's share of the weights; kept exactly.

    A group is closed once the steps left are all owed to other groups. The sets that can be completed to k tokens this
    way form a matroid, for which greedy reaches at least 1/2 of the optimum. A closed group stays closed.
    """

    def __init__(self, pi: Tensor, k: int, rho: float, groups: Tensor, valid: Tensor | None) -> None:
        """Work out what every group is owed.

        Args:
            pi: (B, N) float32 coverage weights, each row sums to 1.
            k: tokens to take.
            rho: share of the budget to guarantee.
            groups: (B, N) long >= 0, group of every token.
            valid: (B, N) bool or None; a group is owed no more than its valid tokens.
        """
        self.groups = groups
        member = torch.ones_like(pi) if valid is None else valid.to(pi.dtype)
        none = pi.new_zeros(pi.shape[0], int(groups.max()) + 1)
        mass = none.scatter_add(1, groups, pi)
        # without the 1e-4 a share such as 4 * 0.25 may be rounded below its whole number
        self.owed = torch.minimum((rho * k * mass + 1e-4).floor(), none.scatter_add(1, groups, member))
        self.left = torch.full_like(self.owed[:, :1], k)

    @classmethod
    def of(
        cls, importance: Tensor, k: int, config: Any, groups: Tensor | None, valid: Tensor | None = None
    ) -> Quota | None:
        """What `config.min_group_share` of a choice of k tokens guarantees, or None: importance (B, N) >= 0."""
        if groups is None or config is None or not config.min_group_share:
            return None
        mix, power = config.quota_weights
        pi = coverage_weights(shares(importance, valid), mix, power, valid)
        return cls(pi, k, config.min_group_share, groups, valid)

    def closed(self) -> Tensor:
        """(B, N) bool: tokens whose taking would leave too few steps for what other groups are owed."""
        spare = self.left - self.owed.sum(1, keepdim=True)
        return (spare <= 0) & (self.owed.gather(1, self.groups) <= 0)

    def take(self, tokens: Tensor) -> None:
        """Note the tokens (B, 1) just taken."""
        group = self.groups.gather(1, tokens)
        self.owed = (self.owed - torch.zeros_like(self.owed).scatter(1, group, 1)).clamp_min(0)
        self.left = self.left - 1
