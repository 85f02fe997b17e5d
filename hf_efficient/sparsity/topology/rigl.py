"""RigL: the smallest weights die, places with the largest gradient come alive (Evci et al., ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .topology import Topology


@dataclass
class RigL(Topology):
    """Drop score |w|, grow score |dL/dz| of the batch of this step."""

    def reads_gradient(self, step: int) -> bool:
        """The gradient of the batch after which weights are exchanged."""
        return self.due(step)

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """|dL/dz| of dead places."""
        assert weight.gradient is not None
        dead = (~weight.alive()).nonzero().flatten()
        return dead, weight.gradient[dead].abs()
