"""MEST: drop by weight and gradient together, grow by chance, ever fewer (Yuan et al., NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .topology import Topology, random_places


@dataclass
class MEST(Topology):
    """Elastic mutation: drop score |w| + lambda |dL/dw|, grow score uniform chance.

    Args:
        gradient_weight: lambda. The paper's soft memory bound, which trains more than k weights for a time, is left
            out: the budget here is exact.
    """

    gradient_weight: float = 0.01

    def reads_gradient(self, step: int) -> bool:
        """The gradient of the batch after which weights are exchanged."""
        return self.due(step)

    def watched(self, weight: SparseWeight, step: int) -> Tensor | None:
        """The living."""
        return weight.indices

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """|w| + lambda |dL/dw|."""
        return weight.values.detach().abs() + self.gradient_weight * weight.living_gradient().abs()

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Chance."""
        return random_places(weight, generator)
