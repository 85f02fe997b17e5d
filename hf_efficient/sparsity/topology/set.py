"""SET: the smallest weights die, random places come alive (Mocanu et al., Nature Communications 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .topology import Topology, random_places


@dataclass
class SET(Topology):
    """Drop score |w|, grow score uniform chance."""

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Chance."""
        return random_places(weight, generator)
