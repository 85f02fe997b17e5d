"""What all torch optimizers here share: a base optimizer, and weights that stand elsewhere during the backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_efficient.optimization.engine.perturbation import Weights
from hf_efficient.optimization.engine.watch import differences, refuse_optimizer
from hf_efficient.optimization.variants.variant import Ascent

from .closure import Closure, ClosureBatch
from .loaded import check_state
from .standing import BackAtTheEnd, BrokenOff, Standing, leave

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
        if isinstance(base_optimizer, Optimizer) or not callable(base_optimizer):
            raise TypeError(
                f"base_optimizer={type(base_optimizer).__name__}(...) is an object; expected the class of an "
                f"optimizer, and its arguments: {type(self).__name__}(params, torch.optim.SGD, lr=0.1)."
            )
        refuse_optimizer(base_optimizer)
        super().__init__(params, {})
        self.base = base_optimizer(self.param_groups, **base_kwargs)
        self.rho, self.adaptive, self.perturb_pruned = rho, adaptive, perturb_pruned
        self.ascent = self.variant() if _ascent is None else _ascent
        self._stand()

    def _stand(self) -> None:
        self._now = Standing(type(self).__name__)
        self.base.register_step_pre_hook(self._now.refuse_step_of_the_base)
        self._link()

    def _link(self) -> None:
        self.param_groups, self.state, self.defaults = self.base.param_groups, self.base.state, self.base.defaults

    def perturb(self, closure: Closure | None = None) -> BackAtTheEnd:
        """Move the weights to where the gradient of this step is to be taken. A second call before `step` does nothing.

        Args:
            closure: returns the loss of the batch, without backward.

        Returns:
            A context manager that brings the weights back, for those who want to be safe from exceptions.

        Raises:
            ValueError: no closure, where one is needed, or one that runs backward by itself; or there is no gradient to
                go by.
        """
        now = self._now
        if now.entered is None:
            if closure is None and self.needs_closure:
                raise ValueError(
                    f"{type(self).__name__} needs the loss to know where to go: "
                    "opt.perturb(lambda: loss_of(model(x), y)), with a function that returns the loss without backward."
                )
            self._base_mode("train")
            weights = Weights(self._parameters(), self.adaptive, not self.perturb_pruned)
            if closure is None and self.needs_batch and not weights.gradients():
                raise ValueError(
                    "perturb(): no gradient stands on the parameters to go by. Run backward first, or give a function "
                    "that returns the loss: opt.perturb(lambda: loss_of(model(x), y))."
                )
            if closure is not None or not self.needs_batch:
                now.check_order(weights)
            now.batch = ClosureBatch(weights, closure)
            measure = weights.narrow and not now.watch.has_told("narrow")
            entered = self.ascent.perturbed(weights, now.batch, self._distance(), measure)
            entered.__enter__()
            now.entered, now.preceded = entered, True
        return BackAtTheEnd(self)

    def restore(self) -> None:
        """Bring the weights back without a step, as if `perturb` had not been called."""
        entered, self._now.entered = self._now.entered, None
        if entered is not None:
            leave(entered, BrokenOff())

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Bring the weights back and let the base optimizer use the gradients that are there.

        Gradients that are not finite are not used: the step then changes nothing.

        Args:
            closure: runs forward and backward, as torch and Lightning have it. S2SAM and MSAM perturb before it, if
                that is not done; the others need `perturb` first.

        Returns:
            What the closure returns.

        Raises:
            ValueError: `perturb` has not been called since the last step, so that the gradient is a plain one.
        """
        now, name = self._now, type(self).__name__
        if closure is not None and self.needs_batch and now.entered is None:
            raise ValueError(f"{name}.step(closure): call opt.perturb(lambda: loss_of(model(x), y)) first, then "
                             "loss.backward(), then step(). In Lightning this needs manual optimization "
                             "(self.automatic_optimization = False); S2SAM and MSAM do without.")  # fmt: skip
        result = self._run(closure) if closure is not None else None
        entered, now.entered = now.entered, None
        if entered is not None:
            leave(entered, None)
        else:
            now.batch = ClosureBatch(Weights(self._parameters()), None)
        self._finish(entered is not None)
        return result

    def _run(self, closure: Callable[[], Any]) -> Any:
        """The closure, at perturbed weights."""
        now = self._now
        late = now.entered is None
        if late:
            self.perturb()
        before = now.witness(now.batch.weights)
        with torch.enable_grad():
            result = closure()
        after = now.witness(now.batch.weights)
        if late and before is not None and after is not None and before[0] is after[0] and before[1] == after[1]:
            self.restore()  # no backward was in it: the gradient that is there was taken before
            now.preceded = False
        return result

    def _finish(self, perturbed: bool) -> None:
        """The step, with the weights where they belong."""
        now, weights = self._now, self._now.batch.weights
        if said := weights.swallowed():
            remedy = "Hold them in float32 and compute in 16 bits by torch.autocast, or use a larger rho."
            now.watch.once("narrow", f"{said} {remedy}")
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if (found_inf is not None and found_inf.item()) or not now.batch.is_finite():
            now.end(weights)
            if found_inf is None:
                now.watch.once("dropped", "The gradient is not finite; the step is dropped, as others like it will be.")
            return
        rho = self._distance()
        if perturbed:
            now.watch.stepped(self.ascent, weights, now.batch.norm, rho)
        elif not now.preceded and rho != 0:
            self._refuse_plain(weights)
        if scale is not None:
            torch._foreach_div_(list(weights.gradients().values()), scale.item())
        now.remembered.before_step(self.ascent.memory)
        now.stepping = True
        try:
            self.base.step()
        finally:
            now.stepping = False
        now.remembered.after_step()
        now.end(weights)
        self.ascent.step += 1

    def _refuse_plain(self, weights: Weights) -> None:
        # Loops and torch's checkpoints run steps without a gradient, or with one of zeros, to fill the state.
        if self._now.batch.norm == 0 and (weights.gradients() or not self.needs_batch):
            return
        how = "perturb(...)" if self.needs_batch else "perturb()"
        instead = (
            "In a Trainer, use SAMTrainer." if self.needs_batch else
            "Where accelerate or a Trainer wraps the optimizer, opt.train() does it; in Lightning, automatic "
            "optimization or self.optimizers().perturb()."
        )  # fmt: skip
        raise ValueError(
            f"{type(self).__name__}: {how} was not called since the last step, so this gradient is that of plain "
            f"training. Call it before forward and backward. {instead}"
        )

    def _distance(self) -> float:
        return self.rho(self.ascent.step) if callable(self.rho) else self.rho

    def _base_mode(self, mode: str) -> None:
        """Schedule-free optimizers train other weights than they evaluate."""
        if callable(change := getattr(self.base, mode, None)):
            change()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch. What is remembered of the gradients stays, also if they are zeroed in place."""
        if not set_to_none:
            for direction in self.ascent.memory.values():
                direction |= {p: d.clone() for p, d in direction.items() if d is p.grad}
        super().zero_grad(set_to_none)

    def train(self) -> None:
        """The Trainer and accelerate call this at the start of a step: perturb, unless the batch is needed for it.

        Raises:
            ValueError: a Trainer calls it that would generate with perturbed weights.
        """
        self._now.refuse_generating_trainer()
        if not self.needs_batch:
            self.perturb()
        elif self._now.entered is None:
            self._base_mode("train")

    def eval(self) -> None:
        """Called before evaluation: the weights are brought back, and the base optimizer told."""
        self.restore()
        self._base_mode("eval")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the group goes to the base optimizer."""
        if hasattr(self, "base"):
            self.base.add_param_group(param_group)
        else:  # while torch's own constructor runs
            super().add_param_group(param_group)

    def _settings(self) -> dict[str, Any]:
        """Plain values, for the saved state: method, distance, and what the variant was made with."""
        own = {name: value for name, value in vars(self.ascent).items() if name != "step"}
        own |= {"rho": self.rho, "adaptive": self.adaptive, "perturb_pruned": self.perturb_pruned}
        plain = {name: value for name, value in own.items() if value is None or isinstance(value, (bool, int, float))}
        return {"method": type(self).__name__, **plain}

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy` and `pickle`, of model and optimizer together: else the copy has weights of its own.

        Raises:
            ValueError: the weights are perturbed, and a copy would take them for the weights.
        """
        if self._now.entered is not None:
            raise ValueError(
                f"{type(self).__name__} is copied or pickled while the weights are perturbed: call step() or "
                "restore() first."
            )
        return {name: getattr(self, name) for name in ("base", "rho", "adaptive", "perturb_pruned", "ascent")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._stand()
        super().__setstate__({})

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's, with what the variant remembers under "sam". The weights are brought back."""
        self.restore()
        number = {p: i for i, p in enumerate(self._parameters())}
        memory = {name: {number[p]: d for p, d in direction.items()} for name, direction in self.ascent.memory.items()}
        sam = {"step": self.ascent.step, "memory": memory, "settings": self._settings()}
        return {**self.base.state_dict(), "sam": sam}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned (or from a plain base optimizer's).

        Of another method nothing is continued but the base optimizer; a warning says what is dropped.

        Raises:
            ValueError: what the variant remembers is damaged, or of another model; nothing is loaded then.
        """
        self.restore()
        own = check_state(state_dict.get("sam", {"step": 0, "memory": {}}), self._parameters())
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "sam"})
        self._link()
        parameters = self._parameters()
        self.ascent.step = own["step"]
        memory = self.ascent.memory
        for name, direction in own["memory"].items():
            if name in memory:
                memory[name] = {parameters[i]: d.to(parameters[i].device) for i, d in direction.items()}
        if changed := differences(own.get("settings", {}), self._settings()):
            dropped = ", ".join(sorted(set(own["memory"]) - set(memory))) or "nothing"
            warnings.warn(f"The state is of {changed}. Of what it remembered, {dropped} is dropped.", stacklevel=2)
