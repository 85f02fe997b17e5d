"""The state of a step in a plain loop: whether the weights are perturbed, and were so in time."""

from __future__ import annotations

import contextlib
import sys
import warnings
import weakref
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hf_efficient.compat.torch import change_count
from hf_efficient.compat.trl import generates_in_training_step
from hf_efficient.optimization.engine.exchange import Buffers
from hf_efficient.optimization.engine.memory import MemoryGuard
from hf_efficient.optimization.engine.monitor import StepMonitor
from hf_efficient.optimization.engine.perturbation import Weights, global_norm

from .batch import ClosureBatch


class StepState:
    """Where one optimizer is in its step.

    A separate object, since Lightning's wrapper reads our attributes but sets its own.

    Args:
        name: of the optimizer.
    """

    batch: ClosureBatch  # of the last step that was begun
    CALLERS = 5  # frames: the optimizer, accelerate's around it, and the Trainer with those around its training step

    def __init__(self, name: str) -> None:
        self.perturbation: AbstractContextManager[object] | None = None  # while the weights are perturbed
        self.was_perturbed = False  # since the last step
        self.stepping = False
        self.caller_checked = False  # who calls `train`
        self.guard = MemoryGuard()
        self.buffers = Buffers()
        self.monitor = StepMonitor(name, lambda message: warnings.warn(message, stacklevel=_outside()))
        self._used: tuple[Any, int] | None = None  # a gradient of the last step, and its version
        self._first: tuple[Tensor, int] | None = None  # one that stood there when the weights were perturbed

    @staticmethod
    def gradient_version(weights: Weights) -> tuple[Tensor, int] | None:
        """A gradient and its version: another pair after a backward, or after they were zeroed."""
        g = next(iter(weights.gradients().values()), None)
        return None if g is None else (g, change_count(g))

    def began(self, perturbation: AbstractContextManager[object]) -> None:
        """The weights of `batch` are perturbed."""
        self.perturbation, self.was_perturbed = perturbation, True
        self._first = self.gradient_version(self.batch.weights)

    def is_unused(self) -> bool:
        """Whether no gradient has been taken since the weights were perturbed."""
        first, now = self._first, self.gradient_version(self.batch.weights)
        return now is None if first is None else now is not None and now[0] is first[0] and now[1] == first[1]

    def broken_off(self) -> None:
        """The weights were brought back before the step; a gradient that was taken before that is still one of ours."""
        self.was_perturbed = self.was_perturbed and not self.is_unused()

    def end(self, weights: Weights) -> None:
        """The step is over: the next one needs a perturbation of its own, and other gradients."""
        self.was_perturbed = False
        seen = self.gradient_version(weights)
        self._used = None if seen is None else (weakref.ref(seen[0]), seen[1])

    def check_order(self, weights: Weights) -> None:
        """Warn of gradients that were taken before the weights are moved; those of the last step may still be there."""
        if self.was_perturbed:
            return
        seen = self.gradient_version(weights)
        if seen is None or (self._used is not None and self._used[0]() is seen[0] and self._used[1] == seen[1]):
            return
        if global_norm(weights.gradients()) > 0:
            self.monitor.warn_once(
                "order",
                f"{self.monitor.name}: perturb() after a backward, whose gradient was taken at unperturbed weights. "
                "Call it before the first backward of a step, or zero_grad() before it.",
            )

    def refuse_generating_trainer(self) -> None:
        """For `train`, which a stock Trainer calls before it makes the inputs of a step.

        Raises:
            ValueError: the Trainer would generate them with perturbed weights.
        """
        frame = None if self.caller_checked else sys._getframe(1)
        self.caller_checked = True
        for _ in range(self.CALLERS):
            if frame is None:
                return
            if generates_in_training_step(trainer := frame.f_locals.get("self")):
                raise ValueError(
                    f"{type(trainer).__name__} generates its data inside the training step, where weights are "
                    f"perturbed; use it without {self.monitor.name}."
                )
            frame = frame.f_back

    def refuse_step_of_the_base(self, optimizer: Optimizer, *_: Any) -> None:
        """Hook of the base optimizer, whose step would be lost when the weights come back."""
        if self.perturbation is not None and not self.stepping:
            raise ValueError(f"{type(optimizer).__name__}.step() while the weights are perturbed: call "
                             f"{self.monitor.name}.step(), which brings them back first.")  # fmt: skip


def _outside() -> int:
    """The `stacklevel` of the first frame outside of this package and torch: the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("hf_efficient.", "torch.")):
        level, frame = level + 1, frame.f_back
    return level


class RestoresOnError:
    """What `perturb` returns: a context manager that brings the weights back after an exception."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.optimizer.restore()


class StepAborted(Exception):
    """Raised inside a method when its step will not be finished."""


def end_perturbation(perturbation: AbstractContextManager[object], error: Exception | None = None) -> None:
    """Bring the weights back; with an error, as a step that will not be finished."""
    with contextlib.suppress(StepAborted):
        perturbation.__exit__(type(error) if error else None, error, None)
