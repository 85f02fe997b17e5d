"""What a method remembers: protected from optimizers that overwrite gradients, and compared when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_efficient.compat.torch import change_count

from .perturbation import Direction, dot, global_norm
from .variant import Memory


class MemoryGuard:
    """Keeps the gradients that a variant remembers from an optimizer that overwrites them, as schedule-free ones do.

    They are copied before the first steps, which show whether the optimizer does so, and from then on if it does.
    """

    PROBES = 10  # steps that are looked at; RAdam changes what it does after five

    def __init__(self) -> None:
        self._probes = self.PROBES
        self._overwritten = self._scaled = False
        self._versions: list[tuple[Tensor, int]] = []
        self._copies: list[tuple[dict[Tensor, Tensor], dict[Tensor, Tensor]]] = []

    def before_step(self, memory: Memory) -> None:
        """Copy what is remembered, where it is the same tensor as the gradient on a weight."""
        shared = [(direction, {p: d for p, d in direction.items() if d is p.grad}) for direction in memory.values()]
        self._versions = [(d, change_count(d)) for _, own in shared for d in own.values()]
        copies = self._probes > 0 or self._overwritten
        self._copies = [
            (direction, {p: d.clone() for p, d in own.items()}) for direction, own in shared if copies and own
        ]

    def after_step(self) -> None:
        """Put the copies in place of what was overwritten."""
        changed = any(change_count(d) != version for d, version in self._versions)
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
    return not dot(before, now) >= 0.9999 * length  # equal where both are zero, as while a first mask is chosen


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that both sets name and that differ, in words, for a warning; empty if there are none."""
    return "; ".join(f"{name}={before[name]!r}, now {now[name]!r}" for name in before if name in now
                     and before[name] != now[name])  # fmt: skip
