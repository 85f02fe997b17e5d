"""SAM (Foret et al., ICLR 2021) and ASAM (Kwon et al., ICML 2021): the ascent direction is the batch's own gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hf_efficient.optimization.engine.perturbation import Weights

from .variant import Batch, Memory


class SAMAscent:
    """ε = ρ ∇L(w) / ‖∇L(w)‖ (Eq. 2); the gradient of the step is ∇L(w + ε).

    With `Weights(adaptive=True)` it is ASAM: ε = ρ T² ∇L(w) / ‖T ∇L(w)‖, T = diag(|w|) (Eq. 8 there, η = 0).
    Two forward and two backward passes.
    """

    still = "the first gradient is zero."

    def __init__(self) -> None:
        self.memory: Memory = {}
        self.step = 0

    @contextmanager
    def perturbed(self, weights: Weights, batch: Batch, rho: float, measure: bool = False) -> Iterator[None]:
        """Weights at w + ε inside the block."""
        with weights.moved(weights.pack(batch.gradient()), rho, measure):
            yield
