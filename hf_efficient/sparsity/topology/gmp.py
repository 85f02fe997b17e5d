"""GMP: start dense, drop the smallest weights along a cubic curve (Zhu and Gupta, 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .base import Move, Topology


@dataclass
class GMP(Topology):
    """k_t = k + (n - k) (1 - t / t_stop)^3; drop score |w|, nothing grows."""

    dense_first: ClassVar[bool] = True

    def count_at(self, step: int, k: int, n: int) -> int:
        """k_t."""
        left = 1 - min(1.0, step / max(1, self.last_exchange()))
        return k + round((n - k) * left**3)

    def last_exchange(self) -> int:
        """t_stop, where k is reached."""
        return int(self.stop_fraction * self.total_steps)

    def due(self, step: int) -> bool:
        """At every interval and at t_stop."""
        last = self.last_exchange()
        return step == last or (step % self.update_interval == 0 and step < last)

    def plan(self, weights: Sequence[SparseWeight], step: int, generator: torch.Generator) -> list[Move]:
        """Drop the smallest weights beyond k_t."""
        moves: list[Move] = []
        for weight in weights:
            active = len(weight.indices)
            surplus = active - min(active, self.count_at(step, weight.budget, weight.numel))
            scores = self.drop_scores(weight)
            if weight.groups is not None:  # the N largest of each group stay
                scores = torch.where(weight.groups.surplus(weight.indices, scores), scores, torch.inf)
            slots = scores.topk(surplus, largest=False).indices
            moves.append((slots, torch.empty(0, dtype=torch.int64, device=slots.device)))
        return moves

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """|w|."""
        return weight.values.detach().abs()
