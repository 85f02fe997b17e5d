"""What all torch optimizers here share: a base optimizer, and weights that are perturbed during the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_efficient.compat.torch import foreach_div_
from hf_efficient.methods import OPTIMIZATION
from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.optimization.engine.adapters import low_rank_terms
from hf_efficient.optimization.engine.given import checked_distance
from hf_efficient.optimization.engine.merged import weights_to_move
from hf_efficient.optimization.engine.perturbation import Weights
from hf_efficient.optimization.engine.refusals import refuse_exchanged, refuse_optimizer
from hf_efficient.optimization.engine.variant import new_variant
from hf_efficient.optimization.variants.asam import asam_scaling

from .batch import Closure, ClosureBatch
from .state_dict import load_state, saved_state
from .step_state import RestoresOnError, StepAborted, StepState, end_perturbation

RhoSchedule = Callable[[int], float]
OWN, DISTANCE = ("rho", "adaptive", "perturb_pruned"), "a finite number >= 0"


class PerturbingOptimizer(Optimizer):
    """A base optimizer, and a method that says where the weights are while the gradient of a step is taken.

    `param_groups`, `state` and `defaults` are the base optimizer's own objects: learning-rate schedulers
    see and change the real ones.
    """

    method: str  # a name of the table
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
        merged: nn.Module | None = None,
        _settings: Mapping[str, Any] | None = None,
        **base_kwargs: Any,
    ) -> None:
        if not callable(rho):
            rho = checked_distance("rho", rho, f"{DISTANCE}, or a function of the step")
        if isinstance(base_optimizer, Optimizer) or not callable(base_optimizer):
            raise TypeError(f"base_optimizer={type(base_optimizer).__name__}(...) is an object; expected the class of "
                            "an optimizer, and its arguments: "
                            f"{type(self).__name__}(params, torch.optim.SGD, lr=0.1).")  # fmt: skip
        refuse_optimizer(base_optimizer)
        space = "weights" if merged is None else "merged"
        arguments = SAMArguments(self.method, adaptive=adaptive, perturb=space, **(_settings or {}))
        if merged is not None:
            low_rank_terms(merged)
        super().__init__(params, {})
        self.base = base_optimizer(self.param_groups, **base_kwargs)
        self.rho, self.adaptive, self.perturb_pruned, self.merged = rho, adaptive, perturb_pruned, merged
        self.variant = new_variant(arguments, self._base)
        self._start()

    def _base(self) -> Optimizer:  # a method, which a copy of this optimizer binds to itself
        return self.base

    def _start(self) -> None:
        self._step_state = StepState(type(self).__name__)
        self.base.register_step_pre_hook(self._step_state.refuse_step_of_the_base)
        self._link()
        self._given = [weakref.ref(p) for p in self._parameters()]

    def _link(self) -> None:
        self.param_groups, self.state, self.defaults = self.base.param_groups, self.base.state, self.base.defaults

    def perturb(self, closure: Closure | None = None) -> RestoresOnError:
        """Move the weights to where the gradient of this step is taken. A second call before `step` does nothing.

        Args:
            closure: returns the loss of the batch, without backward.

        Returns:
            A context manager that brings the weights back after an exception.

        Raises:
            TypeError: the closure cannot be called.
            ValueError: no closure, where one is needed, or one that is wrong; no gradient; shards (ZOSAM), ZeRO.
        """
        now = self._step_state
        if now.perturbation is None:
            if closure is None and self.variant.needs_loss:
                raise ValueError(f"{type(self).__name__} needs the loss to choose a direction: opt.perturb(lambda: "
                                 "loss_of(model(x), y)), with a function that returns the loss without "
                                 "backward.")  # fmt: skip
            refuse_exchanged(self._given, self._parameters())
            self._base_mode("train")
            scaling = asam_scaling if self.adaptive or self.variant.adaptive else None
            weights = weights_to_move(self._parameters(), scaling, not self.perturb_pruned, self.merged, now.buffers)
            if closure is None and self.variant.needs_batch and not weights.gradients():
                raise ValueError("perturb(): no parameter has a gradient to follow. Run backward first, or pass the "
                                 "loss: opt.perturb(lambda: loss_of(model(x), y)).")  # fmt: skip
            if closure is not None or not self.variant.needs_batch:
                now.check_order(weights)
            now.batch = ClosureBatch(weights, closure)
            measure = weights.has_16_bits and not now.monitor.has_warned("16 bits")
            perturbation = self.variant.perturbed(weights, now.batch, self._distance(), measure)
            perturbation.__enter__()
            now.began(perturbation)
        return RestoresOnError(self)

    def restore(self) -> None:
        """Bring the weights back without a step."""
        perturbation, self._step_state.perturbation = self._step_state.perturbation, None
        if perturbation is not None:
            end_perturbation(perturbation, StepAborted())
            self._step_state.broken_off()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Bring the weights back and let the base optimizer step with the gradients that are there.

        Gradients that are not finite are not used: the step then changes nothing.

        Args:
            closure: runs forward and backward, as torch and Lightning have it. Methods that need no batch (S2SAM, MSAM)
                perturb before it; the others need `perturb` first.

        Returns:
            What the closure returns.

        Raises:
            ValueError: `perturb` has not been called since the last step, so that the gradient is a plain one.
        """
        now, name = self._step_state, type(self).__name__
        if closure is not None and self.variant.needs_batch and now.perturbation is None:
            raise ValueError(f"{name}.step(closure): call opt.perturb(lambda: loss_of(model(x), y)) first, then "
                             "loss.backward(), then step(). In Lightning this needs manual optimization "
                             f"(self.automatic_optimization = False); {_without_batch()} need no closure.")  # fmt: skip
        result = self._run(closure) if closure is not None else None
        perturbation, now.perturbation = now.perturbation, None
        if perturbation is not None:
            end_perturbation(perturbation)
        else:
            now.batch = ClosureBatch(Weights(self._parameters()), None)
        self._finish(perturbation is not None)
        return result

    def _run(self, closure: Callable[[], Any]) -> Any:
        """The closure, at perturbed weights."""
        now = self._step_state
        late = now.perturbation is None
        with self.perturb(), torch.enable_grad():  # which brings the weights back if the closure fails
            result = closure()
        if late and now.gradient_version(now.batch.weights) is not None and now.is_unused():
            self.restore()  # no backward was in it: the gradient that is there was taken before
        return result

    def _finish(self, perturbed: bool) -> None:
        """The step, with the weights where they belong."""
        now, weights = self._step_state, self._step_state.batch.weights
        if lost := weights.lost_to_rounding():
            remedy = "Hold them in float32 and compute in 16 bits by torch.autocast, or use a larger rho."
            now.monitor.warn_once("16 bits", f"{lost} {remedy}")
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if (found_inf is not None and found_inf.item()) or not now.batch.is_finite():
            now.end(weights)
            if found_inf is None:
                now.monitor.warn_once(
                    "dropped", "The gradient is not finite; the step is dropped, and so are later ones like it."
                )
            return
        rho = self._distance()
        if perturbed:
            now.monitor.stepped(self.variant, weights, now.batch.norm, rho)
        elif not now.was_perturbed and rho != 0:
            self._refuse_plain(weights)
        if scale is not None:
            foreach_div_(list(weights.gradients().values()), scale.item())
        now.guard.before_step(self.variant.memory)
        now.stepping = True
        try:
            self.base.step()
        finally:
            now.stepping = False
        now.guard.after_step()
        now.end(weights)
        self.variant.step += 1

    def _refuse_plain(self, weights: Weights) -> None:
        # Loops and torch's checkpoints run steps without a gradient, or with one of zeros, to fill the state.
        if self._step_state.batch.norm == 0 and (weights.gradients() or not self.variant.needs_batch):
            return
        how = "perturb(...)" if self.variant.needs_batch else "perturb()"
        instead = (
            "In a Trainer, use SAMTrainer." if self.variant.needs_batch else
            "Where accelerate or a Trainer wraps the optimizer, opt.train() does it; in Lightning, automatic "
            "optimization or self.optimizers().perturb()."
        )  # fmt: skip
        raise ValueError(
            f"{type(self).__name__}: {how} was not called since the last step, so this gradient is one of plain "
            f"training. Call it before forward and backward. {instead}"
        )

    def _distance(self) -> float:
        step = self.variant.step
        return checked_distance(f"rho({step})", self.rho(step), DISTANCE) if callable(self.rho) else self.rho

    def _base_mode(self, mode: str) -> None:
        """Schedule-free optimizers train other weights than they evaluate."""
        if callable(change := getattr(self.base, mode, None)):
            change()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch. Gradients that the method remembers stay, also if they are zeroed in place."""
        if not set_to_none:
            for direction in self.variant.memory.values():
                direction |= {p: d.clone() for p, d in direction.items() if d is p.grad}
        super().zero_grad(set_to_none)

    def train(self) -> None:
        """The Trainer and accelerate call this at the start of a step: perturb, unless that needs the batch.

        Raises:
            ValueError: a Trainer calls it that would generate with perturbed weights.
        """
        self._step_state.refuse_generating_trainer()
        if not self.variant.needs_batch:
            self.perturb()
        elif self._step_state.perturbation is None:
            self._base_mode("train")

    def eval(self) -> None:
        """Called before evaluation: brings the weights back and puts the base optimizer into its mode."""
        self.restore()
        self._base_mode("eval")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the group goes to the base optimizer."""
        if hasattr(self, "base"):
            self.base.add_param_group(param_group)
        else:  # while torch's own constructor runs
            super().add_param_group(param_group)

    def __repr__(self) -> str:
        if "_step_state" not in vars(self):  # while a copy is made
            return f"<{type(self).__name__}>"
        settings = {**{name: getattr(self, name) for name in OWN}, **self.variant.settings()}
        return f"{type(self).__name__}({self.base!r}, {', '.join(f'{k}={v!r}' for k, v in settings.items())})"

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy` and `pickle`, of model and optimizer together: else the copy has weights of its own.

        Raises:
            ValueError: the weights are perturbed, and a copy would take them for the weights.
        """
        if self._step_state.perturbation is not None:
            raise ValueError(
                f"{type(self).__name__} cannot be copied or pickled while the weights are perturbed: call step() or "
                "restore() first."
            )
        return {name: getattr(self, name) for name in (*OWN, "base", "merged", "variant")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()
        super().__setstate__({})

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's, with what the variant remembers under "sam". The weights are brought back."""
        self.restore()
        return {**self.base.state_dict(), "sam": saved_state(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned (or from a plain base optimizer's).

        If it is from another method, only the base optimizer continues; a warning says what is dropped.

        Raises:
            ValueError: what the variant remembers is damaged, or belongs to another model; then nothing is loaded.
        """
        self.restore()
        load_state(self, state_dict)


def _without_batch() -> str:
    """The optimizers that need no batch to perturb, for a message."""
    names = {cls.method: cls.__name__ for cls in PerturbingOptimizer.__subclasses__()}
    rows = [row for row in OPTIMIZATION.methods if not row.implementation.needs_batch]
    return " and ".join(names.get(row.name, row.name) for row in rows)
