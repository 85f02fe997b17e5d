"""What all torch optimizers here share: a base optimizer, and weights that stand elsewhere during the backward pass."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .ascent import Ascent
from .closure import Closure, ClosureBatch
from .perturbation import Weights

RhoSchedule = Callable[[int], float]


class PerturbingOptimizer(Optimizer):
    """A base optimizer, and a variant that says where the weights stand while the gradient of a step is taken.

    `param_groups`, `state` and `defaults` are those of the base optimizer, the very objects: learning-rate schedulers
    see and change the real ones.
    """

    variant: type[Ascent]  # where it has no settings; otherwise the constructor passes one
    needs_batch = False  # whether the direction comes from the batch of the step, and `train` cannot know it
    needs_closure = False
    # A GradScaler then calls step() also when gradients have overflown, so that the weights always come back.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: type[Optimizer] = torch.optim.AdamW,
        rho: float | RhoSchedule = 0.05,
        *,
        adaptive: bool = False,
        perturb_pruned: bool = False,
        _ascent: Ascent | None = None,
        **base_kwargs: Any,
    ) -> None:
        if not callable(rho) and not 0 <= rho < float("inf"):
            raise ValueError(f"rho={rho!r} is out of range; expected a finite number >= 0, or a function of the step.")
        super().__init__(params, {})
        self.base = base_optimizer(self.param_groups, **base_kwargs)
        self.rho, self.adaptive, self.perturb_pruned = rho, adaptive, perturb_pruned
        self.ascent = self.variant() if _ascent is None else _ascent
        self._perturbed: AbstractContextManager[None] | None = None
        self._narrow_reported = False
        self._link()

    def _link(self) -> None:
        self.param_groups, self.state, self.defaults = self.base.param_groups, self.base.state, self.base.defaults

    def perturb(self, closure: Closure | None = None) -> _BackAtTheEnd:
        """Move the weights to where the gradient of this step is to be taken. A second call before `step` does nothing.

        Args:
            closure: returns the loss of the batch, without backward.

        Returns:
            A context manager that brings the weights back, for those who want to be safe from exceptions.

        Raises:
            ValueError: no closure, where one is needed.
        """
        if self._perturbed is None:
            if closure is None and self.needs_closure:
                raise ValueError(
                    f"{type(self).__name__} needs the loss to know where to go: "
                    "opt.perturb(lambda: loss_of(model(x), y)), with a function that returns the loss without backward."
                )
            weights = Weights(self._parameters(), self.adaptive, not self.perturb_pruned)
            self._batch = ClosureBatch(weights, closure)
            rho = self.rho(self.ascent.step) if callable(self.rho) else self.rho
            measure = weights.narrow and not self._narrow_reported
            entered = self.ascent.perturbed(weights, self._batch, rho, measure)
            entered.__enter__()
            self._perturbed = entered
        return _BackAtTheEnd(self)

    def restore(self) -> None:
        """Bring the weights back without a step, as if `perturb` had not been called."""
        entered, self._perturbed = self._perturbed, None
        if entered is not None:
            _leave(entered, _BrokenOff())

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Bring the weights back and let the base optimizer use the gradients that are there.

        Gradients that are not finite are not used: the step then changes nothing.

        Raises:
            ValueError: a closure, which the base optimizer would run at unperturbed weights; or `perturb` has not been
                called where it must be, as in a stock Trainer, which only S2SAM and MSAM can do without.
        """
        if closure is not None:
            raise ValueError("step() takes no closure: call perturb(closure), then loss.backward(), then step().")
        if self.needs_batch and self._perturbed is None and self.rho != 0:
            raise ValueError(
                f"{type(self).__name__}: call perturb(...) before the last backward. In a Trainer, use SAMTrainer."
            )
        entered, self._perturbed = self._perturbed, None
        if entered is not None:
            _leave(entered, None)
            self._report_swallowed()
        batch = self._batch if entered is not None else ClosureBatch(Weights(self._parameters()), None)
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if (found_inf is not None and found_inf.item()) or not batch.is_finite():
            return
        if scale is not None:
            torch._foreach_div_([p.grad for p in self._parameters() if p.grad is not None], scale.item())
        self.base.step()
        self.ascent.step += 1

    def _report_swallowed(self) -> None:
        if said := self._batch.weights.swallowed():
            self._narrow_reported = True
            remedy = "Hold them in float32 and compute in 16 bits by torch.autocast, or use a larger rho."
            warnings.warn(f"{said} {remedy}", stacklevel=3)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch. What is remembered of the gradients stays, also if they are zeroed in place."""
        if not set_to_none:
            for direction in self.ascent.memory.values():
                direction |= {p: d.clone() for p, d in direction.items() if d is p.grad}
        super().zero_grad(set_to_none)

    def train(self) -> None:
        """The Trainer and accelerate call this at the start of a step: perturb, unless the batch is needed for it."""
        if not self.needs_batch:
            self.perturb()

    def eval(self) -> None:
        """Called before evaluation: the weights are brought back."""
        self.restore()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the group goes to the base optimizer."""
        if hasattr(self, "base"):
            self.base.add_param_group(param_group)
        else:  # while torch's own constructor runs
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's, with what the variant remembers under "sam". The weights are brought back."""
        self.restore()
        number = {p: i for i, p in enumerate(self._parameters())}
        memory = {name: {number[p]: d for p, d in direction.items()} for name, direction in self.ascent.memory.items()}
        return {**self.base.state_dict(), "sam": {"step": self.ascent.step, "memory": memory}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned (or from a plain base optimizer's)."""
        self.restore()
        own = state_dict.get("sam", {"step": 0, "memory": {}})
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "sam"})
        self._link()
        parameters = self._parameters()
        self.ascent.step = own["step"]
        for name, direction in own["memory"].items():
            self.ascent.memory[name] = {parameters[i]: d.to(parameters[i].device) for i, d in direction.items()}


class _BackAtTheEnd:
    def __init__(self, optimizer: PerturbingOptimizer) -> None:
        self.optimizer = optimizer

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.optimizer.restore()


class _BrokenOff(Exception):
    """Thrown into a variant to say that its step will not be finished."""


def _leave(entered: AbstractContextManager[None], error: Exception | None) -> None:
    with contextlib.suppress(_BrokenOff):
        entered.__exit__(type(error) if error else None, error, None)
