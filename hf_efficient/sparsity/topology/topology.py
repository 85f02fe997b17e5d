"""What every topology shares: when weights move, how many, and the exact exchange of the worst for the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

Move = tuple[Tensor, Tensor]  # slots that die, (d,) int64; places that come alive, (g,) int64


@dataclass
class Topology:
    """Who lives and who dies. A method says what a living weight and a dead place are worth.

    Args:
        total_steps: T, optimizer steps of the whole training.
        interval: steps between two exchanges.
        share: of the living weights exchanged at the start, in [0, 1]; it falls to 0 along a cosine.
        stop: share of training after which the topology rests, in [0, 1].
    """

    total_steps: int
    interval: int = 100
    share: float = 0.3
    stop: float = 0.75

    def share_at(self, step: int) -> float:
        """share/2 * (1 + cos(pi * t / t_stop)): of the living weights, how many may be exchanged at `step`."""
        return self.share / 2 * (1 + math.cos(math.pi * min(1.0, step / (self.stop * self.total_steps))))

    def due(self, step: int) -> bool:
        """Whether weights are exchanged after optimizer step `step` (the first is 1)."""
        return step % self.interval == 0 and step < self.stop * self.total_steps

    def last_exchange(self) -> int:
        """The last step after which weights are exchanged; 0 if there is none."""
        if not self.share:
            return 0
        last = math.ceil(self.stop * self.total_steps) - 1
        return max(0, last // self.interval * self.interval)

    def reads_gradient(self, step: int) -> bool:
        """Whether dL/dz of dead places is wanted of the batches of `step`."""
        return False

    def watched(self, weight: SparseWeight, step: int) -> Tensor | None:
        """Places of which the gradient of `step` is wanted, the living first in their order; None is all n."""
        return None

    def initial_count(self, k: int, n: int) -> int:
        """Living weights before the first step."""
        return k

    def begin(self, weight: SparseWeight) -> None:
        """Told of a weight before its first step, to set up what it remembers in `weight.memory`."""

    def check_memory(self, weight: SparseWeight, memory: Mapping[str, Tensor]) -> None:
        """Look at what a checkpoint brought of `weight.memory`, before it is used.

        Raises:
            ValueError: a tensor is not as this topology leaves it.
        """

    def observe(self, weight: SparseWeight, step: int, effective_lr: float, generator: torch.Generator) -> None:
        """Read `weight.gradient` of a step at which it was wanted.

        Args:
            weight: whose gradient it is.
            step: optimizer steps done.
            effective_lr: how far a unit of gradient moves a living weight in one step.
            generator: source of chance.
        """

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """(k,): what each living weight is worth; the lowest die."""
        return weight.values.detach().abs()

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Dead places (c,) int64 that may come alive, and what each is worth (c,); the highest do."""
        raise NotImplementedError

    def accepts(self, dying: Tensor, coming: Tensor) -> Tensor:
        """(c,) bool: which exchanges of a dying score (rising order) for a coming one (falling order) happen."""
        return torch.ones_like(dying, dtype=torch.bool)

    def plan(self, weights: Sequence[SparseWeight], step: int, generator: torch.Generator) -> list[Move]:
        """The exchange of the worst living for the best dead, among weights that share one budget.

        Args:
            weights: one weight, or all when the budget is global; then a layer may lose what another gains.
            step: optimizer steps done.
            generator: source of chance.

        Returns:
            A move for each weight; as many die as come alive, over all of them.
        """
        drop = [self.drop_scores(weight).float() for weight in weights]
        if len(weights) > 1:
            for score in drop:
                score[score.argmax()] = torch.inf  # a layer without any weight is cut off for good
        grow = [self.grow_scores(weight, generator) for weight in weights]
        drop_score, grow_score = torch.cat(drop), torch.cat([score.float() for _, score in grow])
        count = min(round(self.share_at(step) * len(drop_score)), int(drop_score.isfinite().sum()), len(grow_score))
        dying, slots = drop_score.topk(count, largest=False)
        coming, at = grow_score.topk(count)
        accepted = self.accepts(dying, coming)
        slots, at = slots[accepted].sort().values, at[accepted].sort().values
        slots_of = by_part(slots, [len(score) for score in drop])
        at_of = by_part(at, [len(score) for _, score in grow])
        return [(s, places[a]) for s, a, (places, _) in zip(slots_of, at_of, grow, strict=True)]

    def moved(self, weight: SparseWeight, slots: Tensor, places: Tensor) -> Tensor | None:
        """Told before a move; returns the values the places start with, (g,), or None for zeros."""
        return None

    def settled(self, weight: SparseWeight) -> None:
        """Told after an exchange; `weight.gradient` is still that of the step."""


def expect(memory: Mapping[str, Tensor], name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """A remembered tensor of this dtype and shape.

    Raises:
        ValueError: it is absent or another.
    """
    value = memory.get(name)
    if value is None or value.dtype != dtype or tuple(value.shape) != shape:
        found = "absent" if value is None else f"{value.dtype} {tuple(value.shape)}"
        raise ValueError(f"{name} is {found}, expected {dtype} {shape}")
    return value


def random_places(weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All dead places, each worth a uniform random number."""
    dead = (~weight.alive()).nonzero().flatten()
    return dead, torch.rand(len(dead), generator=generator).to(dead.device)


def by_part(sorted_positions: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Positions in a concatenation, rising, as positions in each of its parts."""
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    ends = starts + torch.tensor(lengths)
    cuts = torch.searchsorted(sorted_positions.cpu(), torch.stack([starts, ends]))
    return [
        sorted_positions[low:high] - start
        for low, high, start in zip(cuts[0].tolist(), cuts[1].tolist(), starts.tolist(), strict=True)
    ]
