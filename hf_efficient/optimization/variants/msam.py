"""MSAM (Becker et al., 2024, arXiv 2401.12033): the ascent direction is the optimizer's momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hf_efficient.optimization.engine.perturbation import Weights
from hf_efficient.optimizer_state import innermost, keeps_momentum, momenta

from .variant import Batch, Memory


class MSAMAscent:
    """ε = -ρ v / ‖v‖, v the momentum: forward along the coming update, where S2-SAM looks back along the last one.

    Args:
        optimizer: called for the optimizer that holds v, under any name and in any form that
            `hf_efficient.optimizer_state` knows; it need not exist before the first step.
    """

    still = "the momentum is zero."

    def __init__(self, optimizer: Callable[[], Any]) -> None:
        self.optimizer = optimizer
        self.memory: Memory = {}  # the momentum is the optimizer's own, and saved with it
        self.step = 0

    @contextmanager
    def perturbed(self, weights: Weights, batch: Batch, rho: float, measure: bool = False) -> Iterator[None]:
        """Weights at w + ε inside the block; the first step, without momentum, is not perturbed."""
        with weights.moved(weights.pack(self._momentum(weights)), -rho, measure):
            yield

    def _momentum(self, weights: Weights) -> dict[Tensor, Tensor]:
        optimizer = self.optimizer()
        check_momentum(optimizer)
        return momenta(optimizer, weights.parameters)


def check_momentum(optimizer: Any) -> None:
    """Refuse an optimizer that MSAM cannot follow.

    Raises:
        ValueError: it keeps no momentum, or what it keeps is not known.
    """
    try:
        kept = any(keeps_momentum(optimizer, group) for group in innermost(optimizer).param_groups)
    except ValueError as error:
        raise ValueError(f"MSAM follows the momentum, which it does not find in this optimizer. {error}") from error
    if not kept:
        raise ValueError(
            f"MSAM follows the momentum, and {type(innermost(optimizer)).__name__} has none as it is set; use SGD with "
            'momentum (in a Trainer optim="sgd", optim_args="momentum=0.9"), Adam or AdamW.'
        )
