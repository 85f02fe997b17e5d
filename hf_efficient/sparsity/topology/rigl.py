"""RigL: drop the smallest weights, grow those with the largest gradient (Evci et al., ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .base import Topology
from .levels import levelled, levels_of

if TYPE_CHECKING:
    from hf_efficient.sparsity.tuner.config import BiDSTConfig


@dataclass
class RigL(Topology):
    """Drop score |w|, grow score |dL/dz|, from the batch of the step.

    Args:
        levelling: grow scores are divided by the level of their input to this power (`levels.py`); 0 as published.
    """

    levelling: float = 0.0

    @classmethod
    def of(cls, config: BiDSTConfig, total_steps: int) -> Self:
        """With RigL's own settings."""
        return cls(total_steps, **cls.schedule(config), levelling=config.levelling or 0.0)

    def reads_gradient(self, step: int) -> bool:
        """At the steps after which weights are exchanged."""
        return self.due(step)

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """|dL/dz| of inactive weights."""
        inactive = weight.inactive_indices()
        return inactive, levelled(weight, levels_of(weight, self.levelling))[inactive]
