"""MSAM (Becker et al., 2024, arXiv 2401.12033): the direction is the optimizer's momentum."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from hf_efficient.optimization.engine.perturbation import Direction, Weights
from hf_efficient.optimization.engine.variant import Batch, Variant
from hf_efficient.optimizer_state import innermost, keeps_momentum, momenta

if TYPE_CHECKING:
    from hf_efficient.optimization.arguments import SAMArguments


def msam_point(weights: Weights, v: Direction, rho: float, measure: bool = False) -> AbstractContextManager[object]:
    """Inside the block the weights are w + ε, with ε = -ρ v / ‖v‖₂ and v the momentum of the base optimizer.

    It looks forward along the coming update, where S2-SAM looks back along the last gradient. The first step, without
    momentum, is not perturbed.
    """
    return weights.moved(weights.pack(v), -rho, measure)


class MSAMVariant(Variant):
    """One forward and one backward pass. The momentum is the optimizer's own, and saved with it.

    Args:
        optimizer: called for the optimizer that holds v, under any name and in any form that
            `hf_efficient.optimizer_state` knows; it need not exist before the first step.
    """

    idle_reason = "the momentum is zero."

    def __init__(self, optimizer: Callable[[], Any]) -> None:
        super().__init__()
        self.optimizer = optimizer

    @classmethod
    def of(cls, arguments: SAMArguments, optimizer: Callable[[], Any]) -> MSAMVariant:
        """A new one that follows this optimizer."""
        return cls(optimizer)

    def perturbed(
        self, weights: Weights, batch: Batch, rho: float, measure: bool = False
    ) -> AbstractContextManager[object]:
        """Weights at w + ε inside the block."""
        optimizer = self.optimizer()
        check_momentum(optimizer)
        return msam_point(weights, momenta(optimizer, weights.parameters), rho, measure)


def check_momentum(optimizer: Any) -> None:
    """Refuse an optimizer that MSAM cannot follow.

    Raises:
        ValueError: it keeps no momentum, or what it keeps is not known.
    """
    try:
        kept = any(keeps_momentum(optimizer, group) for group in innermost(optimizer).param_groups)
    except ValueError as error:
        raise ValueError(f"MSAM follows the momentum, which was not found in this optimizer. {error}") from error
    if not kept:
        raise ValueError(
            f"MSAM follows the momentum, and {type(innermost(optimizer)).__name__} has none as it is set; use SGD with "
            'momentum (in a Trainer optim="sgd", optim_args="momentum=0.9"), Adam or AdamW.'
        )
