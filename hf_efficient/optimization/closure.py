"""The batch of a plain training loop, as the variants see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .ascent import move_to_higher
from .batch_norm import all_statistics_frozen
from .perturbation import Direction, Weights, global_norm
from .randomness import random_state, set_random_state

Closure = Callable[[], Tensor]


class ClosureBatch:
    """See `ascent.Batch`. `closure` returns the loss, without backward; None where no variant will ask."""

    def __init__(self, weights: Weights, closure: Closure | None) -> None:
        self.weights, self.closure = weights, closure
        self._random_state = random_state() if closure is not None else []
        self._finite = True
        self._norm: float | None = None

    def gradient(self) -> Direction:
        if self.closure is not None:
            self.weights.take_gradients()
            with torch.enable_grad(), all_statistics_frozen():
                self.closure().backward()
            set_random_state(self._random_state)  # the pass at the perturbed weights draws the same dropout masks
        gradient = self.weights.take_gradients()
        self._finite = global_norm(gradient) < float("inf")
        return gradient

    @torch.no_grad()
    def loss(self, fraction: float) -> float:
        assert self.closure is not None
        set_random_state(self._random_state)
        with all_statistics_frozen():
            loss = float(self.closure())
        set_random_state(self._random_state)
        return loss

    @contextmanager
    def higher(self, mirror: Callable[[], None], fraction: float) -> Iterator[None]:
        move_to_higher(self, mirror, fraction)
        yield

    def kept_gradients(self) -> dict[Tensor, Tensor]:
        return self.weights.gradients() if self.is_finite() else {}

    def is_finite(self) -> bool:
        if self._norm is None:
            self._norm = global_norm(self.weights.gradients())
        return self._finite and self._norm < float("inf")
