"""SET: drop the smallest weights, grow random ones (Mocanu et al., Nature Communications 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .base import Topology, random_inactive


@dataclass
class SET(Topology):
    """Drop score |w|, grow score uniform random."""

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform random."""
        return random_inactive(weight, generator)
