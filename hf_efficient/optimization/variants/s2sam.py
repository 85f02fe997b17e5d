"""S2-SAM (Ji et al., NeurIPS 2024): SAM whose ascent direction is the last step's gradient, at no cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hf_efficient.optimization.engine.perturbation import Weights

from .variant import Batch, Memory


class S2SAMAscent:
    """u_t = w_{t-1} + ρ g_{t-1} / ‖g_{t-1}‖ (Eq. 5); g_t = ∇L(u_t), the one gradient of the step (Eq. 6).

    g_{t-1} is the gradient that the last step ended with, at *its* perturbed point; the first step has none and is not
    perturbed. The base optimizer then updates w_{t-1} with g_t, its momentum and weight decay being those of w (Eq. 7).
    """

    still = "no gradient of the step before is remembered."

    def __init__(self) -> None:
        self.memory: Memory = {"gradient": {}}
        self.step = 0

    @contextmanager
    def perturbed(self, weights: Weights, batch: Batch, rho: float, measure: bool = False) -> Iterator[None]:
        """Weights at u_t inside the block, which leaves g_t as their gradients."""
        g = weights.pack(self.memory["gradient"])
        self.memory["gradient"] = {}  # with a mask, only the packed form is held during the step
        try:
            with weights.moved(g, rho, measure):
                yield
            self.memory["gradient"] = batch.kept_gradients()
        finally:
            if not self.memory["gradient"]:  # a step that failed leaves all as it was
                self.memory["gradient"] = weights.unpack(g)
