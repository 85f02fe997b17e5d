"""MSAM (Becker et al., 2024, arXiv 2401.12033): the ascent direction is the optimizer's momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.optim import Optimizer

from .ascent import Batch, Memory
from .perturbation import Weights


class MSAMAscent:
    """ε = -ρ v / ‖v‖, v the momentum: forward along the coming update, where S2-SAM looks back along the last one.

    Args:
        optimizer: called for the optimizer that holds v (`momentum_buffer` of SGD, `exp_avg` of Adam and its kin); it
            need not exist before the first step.
    """

    still = "its state holds no momentum of these weights. Use SGD with momentum, Adam or AdamW."

    def __init__(self, optimizer: Callable[[], Optimizer]) -> None:
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
        if not any(group.get("momentum") or "betas" in group for group in optimizer.param_groups):
            raise ValueError(
                "MSAM follows the momentum, and this optimizer has none; use SGD with momentum (in a Trainer "
                'optim="sgd", optim_args="momentum=0.9"), Adam or AdamW.'
            )
        state = optimizer.state
        buffers = {
            p: state[p].get("momentum_buffer", state[p].get("exp_avg")) for p in weights.parameters if p in state
        }
        return {p: v for p, v in buffers.items() if v is not None}
