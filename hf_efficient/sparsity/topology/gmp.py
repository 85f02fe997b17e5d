"""GMP: start dense, drop the smallest weights along a cubic curve (Zhu and Gupta, 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .base import Move, Topology

if TYPE_CHECKING:
    from hf_efficient.sparsity.tuner.config import BiDSTConfig


@dataclass
class GMP(Topology):
    """Drop score |w|, nothing grows; `count_at` says how many are active."""

    initial_sparsity: float | None = 0.0

    @classmethod
    def of(cls, config: BiDSTConfig, total_steps: int) -> Self:
        """Dense first, unless `initial_sparsity` is set."""
        return cls(total_steps, **cls.schedule(config) | {"initial_sparsity": config.initial_sparsity or 0.0})

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
