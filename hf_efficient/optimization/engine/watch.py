"""Whether a method really acts: what is counted in each step, and the one place where the verdict is spoken.

Every variant moves the weights through `Weights`, which notes that it did; every step ends in `Watch.stepped`. What can
never work is refused before, by the optimizer that is used (`refuse_optimizer`) or by the step that it takes while the
weights stand elsewhere (`no_step_inside`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hf_efficient.optimization.variants.variant import Ascent, Memory

from .perturbation import Direction, Weights, dot, global_norm

INSIDE = (
    "A layerwise or fused optimizer steps inside of backward, where the weights are perturbed, and its step is lost; "
    "take its plain form, and step after training_step."
)


class Watch:
    """Says once, by `tell`, that a method has not acted.

    Args:
        name: of the method, for the message.
        tell: called with a message.
    """

    PATIENCE = 2  # steps: S2-SAM and MSAM have nothing to go by in their first one

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self.name, self.tell = name, tell
        self._idle = 0
        self._told: set[str] = set()

    def once(self, what: str, message: str) -> None:
        """Tell a message of this kind, the first time."""
        if what not in self._told:
            self._told.add(what)
            self.tell(message)

    def has_told(self, what: str) -> bool:
        """Whether a message of this kind has been told."""
        return what in self._told

    def stepped(self, ascent: Ascent, weights: Weights, norm: float, rho: float) -> None:
        """The verdict on a step that was taken.

        Args:
            ascent: the variant.
            weights: those it had, which know whether they were moved.
            norm: of the gradient of the step, finite.
            rho: its distance; with 0 nothing is to be moved.
        """
        if rho == 0:
            return
        self._idle = 0 if weights.acted and norm > 0 else self._idle + 1
        if self._idle < self.PATIENCE:
            return
        if not weights.gradients():
            why = ("no gradient is on any of its weights. Are they those of the model, do they require gradients, and "
                   "does backward run between perturb() and step()?")  # fmt: skip
        else:
            why = ascent.still if norm > 0 else "the gradient is zero."
            if weights.adaptive:
                why += " Distances are in sizes of weights (adaptive), and weights of zero have none."
        self.once(
            "still", f"{self.name} has moved no weight in the last {self._idle} steps, which train plainly: {why}"
        )


def refuse_optimizer(optimizer: Any, weights: Weights | None = None) -> None:
    """Refuse what cannot step after the weights have come back.

    Args:
        optimizer: an optimizer (as accelerate wraps it, too) or the class of one.
        weights: those of the model, some of which it must hold. None does not ask.

    Raises:
        ValueError: it steps inside of backward, needs a closure of its own, perturbs by itself, or is of other weights.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    name = inner.__name__ if isinstance(inner, type) else type(inner).__name__
    if hasattr(inner, "fused_backward"):
        raise ValueError(f"{name}: {INSIDE}")
    if hasattr(inner, "perturb") or hasattr(inner, "first_step"):
        raise ValueError(f"{name} perturbs by itself; give the optimizer below it, as torch.optim.AdamW.")
    if _needs_closure(inner):
        raise ValueError(f"{name}.step() runs a closure of its own, several times, at weights that it moves by itself; "
                         "take an optimizer whose step() needs none, as torch.optim.SGD or AdamW.")  # fmt: skip
    if weights is None:
        return
    held = {id(p) for group in inner.param_groups for p in group["params"]}
    if weights.parameters and not any(id(p) in held for p in weights.parameters):
        raise ValueError(f"The optimizer ({name}) holds none of the model's trainable weights. {INSIDE} If it was made "
                         "for another copy of the model, make it of the parameters of this one.")  # fmt: skip


def _needs_closure(optimizer: Any) -> bool:
    import inspect

    try:
        parameters = list(inspect.signature(optimizer.step).parameters.values())
    except (TypeError, ValueError, AttributeError):  # made in C, or no optimizer
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return any(p.name == "closure" for p in required)


def generates(trainer: object) -> bool:
    """Whether a Trainer generates text inside of its training step, as TRL's GRPO, online DPO and GKD do."""
    modules = [sys.modules.get(c.__module__) for c in type(trainer).__mro__]
    return hasattr(trainer, "_buffered_inputs") or any(hasattr(m, "unwrap_model_for_generation") for m in modules)


@contextmanager
def no_step_inside(weights: Weights) -> Iterator[None]:
    """Refuse, inside the block, the step of any torch optimizer that holds one of the weights.

    Raises:
        ValueError: from that step, before it changes anything.
    """

    def refuse(optimizer: Optimizer, *_: Any) -> None:
        own = {id(p) for p in weights.parameters}
        if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(f"{type(optimizer).__name__}.step() while the weights are perturbed. {INSIDE}")

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


class Remembered:
    """Gradients that a variant remembers, kept from an optimizer that writes over them, as schedule-free ones do.

    They are copied before the first steps, which show whether it does (some begin after a few), and always if it does.
    """

    PROBES = 10  # steps; RAdam changes what it does after five

    def __init__(self) -> None:
        self._probes = self.PROBES
        self._overwritten = self._scaled = False
        self._versions: list[tuple[Tensor, int]] = []
        self._copies: list[tuple[dict[Tensor, Tensor], dict[Tensor, Tensor]]] = []

    def before_step(self, memory: Memory) -> None:
        """Copy what is remembered and is the very gradient on a weight."""
        shared = [(direction, {p: d for p, d in direction.items() if d is p.grad}) for direction in memory.values()]
        self._versions = [(d, d._version) for _, own in shared for d in own.values()]
        copies = self._probes > 0 or self._overwritten
        self._copies = [
            (direction, {p: d.clone() for p, d in own.items()}) for direction, own in shared if copies and own
        ]

    def after_step(self) -> None:
        """Put the copies in place of what was overwritten."""
        changed = any(d._version != version for d, version in self._versions)
        for direction, copies in self._copies:
            self._overwritten = self._overwritten or _turned(copies, direction)
            if self._overwritten:
                direction.update(copies)
        if self._copies:
            self._probes -= 1
            self._scaled = self._scaled or (changed and not self._overwritten)
        elif changed and not self._scaled:
            self._probes = self.PROBES  # it has begun to
        self._versions, self._copies = [], []


def _turned(before: Direction, now: Direction) -> bool:
    """Whether it has another direction than before; a GradScaler divides in place, which leaves it."""
    length = global_norm(before) * global_norm({p: now[p] for p in before})
    return not dot(before, now) > 0.9999 * length


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two sets of settings do not have in common, in words; of those that both name."""
    return "; ".join(f"{name}={before[name]!r}, now {now[name]!r}" for name in before if name in now
                     and before[name] != now[name])  # fmt: skip
