"""MEST: drop by weight and gradient together, grow random weights (Yuan et al., NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .base import Topology, random_inactive


@dataclass
class MEST(Topology):
    """Elastic mutation: drop score |w| + lambda |dL/dw|, grow score uniform random.

    Args:
        gradient_weight: lambda. The paper's soft memory bound, which trains more than k weights for some time, is left
            out: the budget here is exact.
    """

    gradient_weight: float = 0.01

    def reads_gradient(self, step: int) -> bool:
        """At the steps after which weights are exchanged."""
        return self.due(step)

    def gradient_indices(self, weight: SparseWeight, step: int) -> Tensor | None:
        """The active weights alone."""
        return weight.indices

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """|w| + lambda |dL/dw|."""
        return weight.whole_values().abs() + self.gradient_weight * weight.active_gradient().abs()

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform random."""
        return random_inactive(weight, generator)
