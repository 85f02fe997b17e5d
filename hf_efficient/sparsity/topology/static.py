"""Static: the topology of the first step is that of the last (the baseline; also a pruned model that stays pruned)."""

from __future__ import annotations

from dataclasses import dataclass

from .topology import Topology


@dataclass
class Static(Topology):
    """Nothing moves. Which weights live is said by the way the topology starts: random, magnitude, SNIP."""

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def last_exchange(self) -> int:
        """None."""
        return 0
