"""GMP: dense at the start, the smallest weights die along a cubic curve (Zhu and Gupta, 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .topology import Move, Topology


@dataclass
class GMP(Topology):
    """k_t = k + (n - k) (1 - t / t_stop)^3; drop score |w|, nothing grows. Dense at first: a baseline."""

    def initial_count(self, k: int, n: int) -> int:
        """All."""
        return n

    def due(self, step: int) -> bool:
        """Also at the last moment, so that k is reached."""
        last = int(self.stop * self.total_steps)
        return step == last or (step % self.interval == 0 and step < last)

    def last_exchange(self) -> int:
        """That one: k is reached."""
        return int(self.stop * self.total_steps)

    def count_at(self, step: int, k: int, n: int) -> int:
        """k_t."""
        left = 1 - min(1.0, step / max(1, int(self.stop * self.total_steps)))
        return k + round((n - k) * left**3)

    def plan(self, weights: Sequence[SparseWeight], step: int, generator: torch.Generator) -> list[Move]:
        """The smallest beyond k_t die."""
        moves: list[Move] = []
        for weight in weights:
            living = len(weight.indices)
            surplus = living - min(living, self.count_at(step, weight.budget, weight.numel))
            slots = self.drop_scores(weight).topk(surplus, largest=False).indices
            moves.append((slots, torch.empty(0, dtype=torch.int64, device=slots.device)))
        return moves

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """|w|."""
        return weight.values.detach().abs()
