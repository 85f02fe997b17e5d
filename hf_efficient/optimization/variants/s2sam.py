"""S2-SAM (Ji et al., NeurIPS 2024): SAM whose ascent direction is the last step's gradient, at no cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from hf_efficient.optimization.engine.merged import MergedWeights
from hf_efficient.optimization.engine.perturbation import Direction, Weights
from hf_efficient.optimization.engine.variant import Batch, Variant

if TYPE_CHECKING:
    from hf_efficient.optimization.arguments import SAMArguments


def s2sam_point(weights: Weights, g: Direction, rho: float, measure: bool = False) -> AbstractContextManager[object]:
    """Inside the block the weights are u_t = w_{t-1} + ρ g_{t-1} / ‖g_{t-1}‖₂ (Eq. 5).

    g = g_{t-1}, packed, is the gradient that the last step took at *its* perturbed point; the first step has none and
    is not perturbed. The one gradient of this step, g_t = ∇L(u_t) (Eq. 6), updates w_{t-1} by the base optimizer, whose
    momentum and weight decay are those of w (Eq. 7).
    """
    return weights.moved(g, rho, measure)


class S2SAMVariant(Variant):
    """One forward and one backward pass. It remembers one gradient."""

    idle_reason = "no gradient of the step before is remembered."

    def __init__(self) -> None:
        super().__init__()
        self.memory = {"gradient": {}}

    @classmethod
    def of(cls, arguments: SAMArguments, optimizer: Callable[[], Any]) -> S2SAMVariant:
        """A new one; that of merged weights, if the settings say so."""
        return MergedS2SAMVariant() if arguments.perturb == "merged" else cls()

    @contextmanager
    def perturbed(self, weights: Weights, batch: Batch, rho: float, measure: bool = False) -> Iterator[None]:
        """Weights at u_t inside the block, which leaves g_t as their gradients."""
        g = weights.pack(self.memory["gradient"])
        self.memory["gradient"] = {}  # with a mask, only the packed form is held during the step
        try:
            with s2sam_point(weights, g, rho, measure):
                yield
            self.memory["gradient"] = batch.kept_gradients()
        finally:
            if not self.memory["gradient"]:  # a step that failed leaves all as it was
                self.memory["gradient"] = weights.unpack(g)


class MergedS2SAMVariant(S2SAMVariant):
    """S2-SAM that moves the merged weight of LoRA layers by ε = ρ P_{t-1} / ‖P_{t-1}‖ (`engine/merged.py`).

    P_{t-1} is the projection of the last gradient on what the adapter could change then. It is remembered in factors
    twice as large as the adapter, since the adapter has changed when it is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = {"ascent": {}, "bases": {}}

    @contextmanager
    def perturbed(self, weights: Weights, batch: Batch, rho: float, measure: bool = False) -> Iterator[None]:
        """The model computes at u_t inside the block, which leaves g_t as gradients."""
        assert isinstance(weights, MergedWeights)
        weights.bases = self.memory["bases"]
        with s2sam_point(weights, weights.pack(self.memory["ascent"]), rho, measure):
            yield
        if g := batch.kept_gradients():
            ascent = weights.ascent(g)
            self.memory["ascent"], self.memory["bases"] = ascent, weights.bases
