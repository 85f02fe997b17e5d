"""RigL: drop the smallest weights, grow those with the largest gradient (Evci et al., ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .base import Topology


@dataclass
class RigL(Topology):
    """Drop score |w|, grow score |dL/dz|, from the batch of the step."""

    def reads_gradient(self, step: int) -> bool:
        """At the steps after which weights are exchanged."""
        return self.due(step)

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """|dL/dz| of inactive weights."""
        assert weight.gradient is not None
        inactive = weight.inactive_indices()
        return inactive, weight.gradient[inactive].abs()
