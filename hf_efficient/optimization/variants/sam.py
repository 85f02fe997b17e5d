"""SAM (Foret et al., ICLR 2021, arXiv 2010.01412): the ascent direction is the batch's own gradient."""

from __future__ import annotations

from contextlib import AbstractContextManager

from hf_efficient.optimization.engine.perturbation import Direction, Weights
from hf_efficient.optimization.engine.variant import Batch, Variant


def sam_point(weights: Weights, g: Direction, rho: float, measure: bool = False) -> AbstractContextManager[object]:
    """Inside the block the weights are w + ε, with ε = ρ g / ‖g‖₂ and g = ∇L(w) (Eq. 2).

    The gradient taken there, ∇L(w + ε), trains w (Eq. 3).
    """
    return weights.moved(weights.pack(weights.ascent(g)), rho, measure)


class SAMVariant(Variant):
    """Two forward and two backward passes: one for g, one at w + ε."""

    needs_batch = True
    idle_reason = "the first gradient is zero."

    def perturbed(
        self, weights: Weights, batch: Batch, rho: float, measure: bool = False
    ) -> AbstractContextManager[object]:
        """Weights at w + ε inside the block."""
        return sam_point(weights, batch.gradient(), rho, measure)
