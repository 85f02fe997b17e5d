"""Static: the mask of the first step is the last (the baseline; also a pruned model that stays pruned)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Topology


@dataclass
class Static(Topology):
    """Never exchanges a weight. `init` says which are active: random, magnitude, gradient, SNIP."""

    exchanges: ClassVar[bool] = False

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def last_exchange(self) -> int:
        """0: there is none."""
        return 0
