"""What a variant is: it says where the weights stand while the gradient of a step is taken.

A variant has one method, `perturbed`, a context manager: around its block it moves the weights and brings them back; in
the block the caller runs forward and backward of the whole batch. The Trainer and the torch optimizers both use it, so
that each algorithm is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from torch import Tensor

from hf_efficient.optimization.engine.perturbation import Direction, Weights

#: What a variant carries from one step to the next: name -> dense direction. It is saved with checkpoints.
Memory: TypeAlias = dict[str, dict[Tensor, Tensor]]


class Batch(Protocol):
    """The data of one optimizer step (all its micro-batches), as a function of the weights as they are now."""

    def gradient(self) -> Direction:
        """∇L at the present weights, by a forward and a backward pass. Leaves no gradient on the weights."""

    def loss(self, fraction: float) -> float:
        """L at the present weights on this share of each micro-batch: no graph, the same dropout in every call."""

    def higher(self, mirror: Callable[[], None], fraction: float) -> AbstractContextManager[None]:
        """In the block the step's gradient is taken where L is higher: at the weights as they are, or at their mirror.

        `mirror` goes from the one point to the other. Where the data allows it, the forward pass that asks the first
        point is the one of the step: two or three passes forward in all, not three.
        """

    def kept_gradients(self) -> dict[Tensor, Tensor]:
        """The gradients on the weights, safe to keep until the next step; none if they or the loss are not finite."""


class Ascent(Protocol):
    """A variant of sharpness-aware minimization."""

    memory: Memory
    step: int  # number of the optimizer step, set by the caller
    still: str  # why it may have moved nothing although there is a gradient, and what to do

    def perturbed(
        self, weights: Weights, batch: Batch, rho: float, measure: bool = False
    ) -> AbstractContextManager[None]:
        """Weights at the variant's point inside the block, and as they were after it."""


def move_to_higher(batch: Batch, mirror: Callable[[], None], fraction: float) -> None:
    """Two losses, without graph; then the weights are where the larger one was."""
    here = batch.loss(fraction)
    mirror()
    if not batch.loss(fraction) > here:
        mirror()
