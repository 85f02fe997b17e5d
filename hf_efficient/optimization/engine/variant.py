"""What a method is: it says where the weights are while the gradient of a step is taken.

A variant has one method, `perturbed`, a context manager: it moves the weights and brings them back after its block, in
which the caller runs forward and backward of the whole batch. The Trainer and the torch optimizers both use it, so that
each algorithm is written once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from torch import Tensor

from hf_efficient.methods import OPTIMIZATION

from .perturbation import Direction, Weights

if TYPE_CHECKING:
    from hf_efficient.optimization.arguments import SAMArguments

#: What a variant carries from one step to the next: name -> dense direction. It is saved with checkpoints.
Memory: TypeAlias = dict[str, dict[Tensor, Tensor]]


class Batch(Protocol):
    """The data of one optimizer step (all its micro-batches), as a function of the weights as they are now."""

    def gradient(self) -> Direction:
        """∇L at the current weights, by a forward and a backward pass. Leaves no gradient on the weights."""

    def loss(self, fraction: float) -> float:
        """L at the current weights on this share of each micro-batch: no graph, the same dropout in every call."""

    def at_higher_loss(self, mirror: Callable[[], None], fraction: float) -> AbstractContextManager[None]:
        """Inside the block the step's gradient is taken where L is higher: at the current weights or at their mirror.

        `mirror` goes from one point to the other. Where the data allows it, the pass that probes the first point
        is that of the step: two or three forward passes in all instead of three.
        """

    def kept_gradients(self) -> dict[Tensor, Tensor]:
        """The gradients on the weights, safe to keep until the next step; none if they or the loss are not finite."""


class Variant(ABC):
    """A method of sharpness-aware training. A subclass says where the weights move, and what it needs for that.

    Attributes:
        memory: what it carries to the next step.
        step: number of the optimizer step, set by the caller.
        adaptive: whether distances are always measured as in ASAM.
        needs_batch: whether the direction comes from the batch of the step.
        needs_loss: whether it also evaluates the loss itself.
        idle_reason: why it may move nothing although there is a gradient, and what to do.
    """

    adaptive: ClassVar[bool] = False
    needs_batch: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = False
    idle_reason: ClassVar[str]

    def __init__(self) -> None:
        self.memory: Memory = {}
        self.step = 0

    @property
    def period(self) -> int:
        """Steps after which costs repeat; 1 where every step costs the same."""
        return 1

    @classmethod
    def of(cls, arguments: SAMArguments, optimizer: Callable[[], Any]) -> Variant:
        """A new one with these settings.

        Args:
            arguments: the settings.
            optimizer: called for the optimizer that takes the steps, which may be made after this call.
        """
        return cls()

    @abstractmethod
    def perturbed(
        self, weights: Weights, batch: Batch, rho: float, measure: bool = False
    ) -> AbstractContextManager[object]:
        """Weights at the variant's point inside the block, and as they were after it.

        Args:
            weights: those to move.
            batch: of the step.
            rho: distance.
            measure: see `Weights.moved`.
        """

    def settings(self) -> dict[str, Any]:
        """The plain values it was made with."""
        own = {name: value for name, value in vars(self).items() if name != "step"}
        return {name: value for name, value in own.items() if value is None or isinstance(value, (bool, int, float))}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"


def move_to_higher_loss(batch: Batch, mirror: Callable[[], None], fraction: float) -> None:
    """Evaluate two losses without a graph, and leave the weights where the loss is larger."""
    here = batch.loss(fraction)
    mirror()
    if not batch.loss(fraction) > here:
        mirror()


def new_variant(arguments: SAMArguments, optimizer: Callable[[], Any]) -> Variant:
    """The method that the settings name ("sam" where they name none).

    Args:
        arguments: the settings.
        optimizer: called for the optimizer that takes the steps, whose momentum "msam" follows.
    """
    variant: Variant = OPTIMIZATION.row(arguments.method or "sam").implementation.of(arguments, optimizer)
    return variant
