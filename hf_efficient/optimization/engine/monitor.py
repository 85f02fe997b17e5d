"""Whether a method acts: every step is checked, and one warning says if the weights were not moved.

Every variant moves the weights through `Weights`, which notes that it did; every step ends in `StepMonitor.stepped`.
"""

from __future__ import annotations

from collections.abc import Callable

from .perturbation import Weights
from .variant import Variant


class StepMonitor:
    """Warns once if a method has not moved the weights.

    Args:
        name: of the method, for the message.
        warn: called with a message.
    """

    PATIENCE = 2  # steps: S2-SAM and MSAM have nothing to go by in their first one

    def __init__(self, name: str, warn: Callable[[str], None]) -> None:
        self.name, self.warn = name, warn
        self._idle = 0
        self._warned: set[str] = set()

    def warn_once(self, kind: str, message: str) -> None:
        """Give a warning of this kind, the first time."""
        if kind not in self._warned:
            self._warned.add(kind)
            self.warn(message)

    def has_warned(self, kind: str) -> bool:
        """Whether a warning of this kind has been given."""
        return kind in self._warned

    def stepped(self, variant: Variant, weights: Weights, norm: float, rho: float) -> None:
        """Check a step that was taken.

        Args:
            variant: the method.
            weights: the weights of the step, which know whether they were moved.
            norm: of the gradient of the step, finite.
            rho: its distance; with 0 nothing is to be moved.
        """
        if rho == 0:
            return
        self._idle = 0 if weights.took_effect and norm > 0 else self._idle + 1
        if self._idle < self.PATIENCE:
            return
        if not weights.gradients():
            why = ("there is no gradient on any of its weights. Are they those of the model, do they require gradients "
                   "and does backward run between perturb() and step()?")  # fmt: skip
        else:
            why = variant.idle_reason if norm > 0 else "the gradient is zero."
            if weights.scaling is not None:
                why += " Distances are relative to the size of each weight (adaptive), so weights of zero do not move."
        self.warn_once(
            "idle", f"{self.name} has moved no weight in the last {self._idle} steps, which are plain training: {why}"
        )
