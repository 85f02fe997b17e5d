"""The batch of a plain training loop, as seen by a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from hf_efficient.optimization.engine.batch_norm import all_statistics_frozen
from hf_efficient.optimization.engine.given import checked_loss
from hf_efficient.optimization.engine.perturbation import Direction, Weights, global_norm
from hf_efficient.optimization.engine.randomness import random_state, set_random_state
from hf_efficient.optimization.engine.refusals import refuse_shards
from hf_efficient.optimization.engine.variant import move_to_higher_loss

Closure = Callable[[], Tensor]


class ClosureBatch:
    """The `Batch` of a plain loop (engine/variant.py).

    Args:
        weights: those of the optimizer.
        closure: returns the loss, without backward; None where the method needs none.

    Raises:
        TypeError: the closure cannot be called.
    """

    def __init__(self, weights: Weights, closure: Closure | None) -> None:
        if closure is not None and not callable(closure):
            raise TypeError(f"perturb(): a {type(closure).__name__} cannot be called; expected a function that returns "
                            "the loss: opt.perturb(lambda: loss_of(model(x), y)).")  # fmt: skip
        self.weights, self.closure = weights, closure
        self._random_state = random_state() if closure is not None else []
        self._finite = True
        self._norm: float | None = None

    def gradient(self) -> Direction:
        if self.closure is not None:
            self.weights.take_gradients()
            with torch.enable_grad(), all_statistics_frozen():
                checked_loss("perturb()", self._loss(), graph=True).backward()
            set_random_state(self._random_state)  # the pass at the perturbed weights draws the same dropout masks
            if not self.weights.gradients():
                raise ValueError("There is no gradient on any parameter of the optimizer: are they those of the model, "
                                 "and do they require gradients?")  # fmt: skip
        gradient = self.weights.take_gradients()
        self._finite = global_norm(gradient) < float("inf")
        return gradient

    def _loss(self, *others: type) -> Tensor:
        """What the closure returns: a tensor, or one of other types.

        Raises:
            ValueError: it is none of these, or not one value, or the closure has run backward.
        """
        assert self.closure is not None
        before, ran_backward = len(self.weights.gradients()), False
        try:
            loss = self.closure()
        except RuntimeError as error:
            if "does not require grad" not in str(error):  # what backward says of a loss without graph
                raise
            ran_backward = True
        if ran_backward or len(self.weights.gradients()) != before:
            raise ValueError("perturb(): the function must return the loss without backward, which is run here.")
        return checked_loss("perturb()", loss, *others)

    @torch.no_grad()
    def loss(self, fraction: float) -> float:
        refuse_shards(self.weights)
        set_random_state(self._random_state)
        with all_statistics_frozen():
            loss = float(self._loss(float, int))
        set_random_state(self._random_state)
        return self._mean_over_processes(loss)

    def _mean_over_processes(self, loss: float) -> float:
        """All processes must go to the same side of the weights; gradients are averaged over them by DDP."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return loss
        total = torch.tensor(loss, dtype=torch.float64, device=self.weights.parameters[0].device)
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()

    @contextmanager
    def at_higher_loss(self, mirror: Callable[[], None], fraction: float) -> Iterator[None]:
        move_to_higher_loss(self, mirror, fraction)
        yield

    def kept_gradients(self) -> dict[Tensor, Tensor]:
        return self.weights.dense_gradients() if self.is_finite() else {}

    @property
    def norm(self) -> float:
        """Of the gradient of the step."""
        if self._norm is None:
            self._norm = global_norm(self.weights.gradients())
        return self._norm

    def is_finite(self) -> bool:
        return self._finite and self.norm < float("inf")
