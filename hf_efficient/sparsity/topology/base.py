"""What all topologies share: when weights are exchanged, how many, and the exchange of lowest scores for highest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from hf_efficient.methods import SPARSITY
from hf_efficient.optimizer_state import Pace
from hf_efficient.sparsity.sparse_weight import SparseWeight

if TYPE_CHECKING:
    from hf_efficient.sparsity.tuner.config import BiDSTConfig

Move = tuple[Tensor, Tensor]  # slots of the dropped weights, (d,) int64; indices of the grown ones, (g,) int64


@dataclass
class Topology:
    """Decides which weights are active: drop scores for active weights, grow scores for inactive ones.

    Args:
        total_steps: T, optimizer steps of the whole training.
        update_interval: steps between two exchanges.
        drop_fraction: share of the active weights exchanged at the start, in [0, 1]; falls to 0 along a cosine.
        stop_fraction: share of training after which no weight is exchanged, in [0, 1].
        initial_sparsity: share of inactive weights at the start; the number of active ones falls along a cubic curve
            and is k from the last exchange on. None: k from the first step.
        grow_from: first values of grown weights: "zero", or "start", what they were before training.

    Attributes:
        exchanges: whether this topology ever exchanges a weight.
    """

    total_steps: int
    update_interval: int = 100
    drop_fraction: float = 0.3
    stop_fraction: float = 0.75
    initial_sparsity: float | None = None
    grow_from: str = "zero"
    exchanges: ClassVar[bool] = True

    @classmethod
    def of(cls, config: BiDSTConfig, total_steps: int) -> Self:
        """The topology with a config's settings, for a training of `total_steps` optimizer steps."""
        return cls(total_steps, **cls.schedule(config))

    @staticmethod
    def schedule(config: BiDSTConfig) -> dict[str, Any]:
        """The settings that all topologies share."""
        names = ("update_interval", "drop_fraction", "stop_fraction", "initial_sparsity", "grow_from")
        return {name: getattr(config, name) for name in names}

    def drop_fraction_at(self, step: int) -> float:
        """drop_fraction/2 * (1 + cos(pi * t / t_stop)): the largest share of active weights exchanged at `step`."""
        stop = self.stop_fraction * self.total_steps
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * min(1.0, step / stop)))

    def due(self, step: int) -> bool:
        """Whether weights are exchanged after optimizer step `step` (the first is 1)."""
        return step % self.update_interval == 0 and step < self.stop_fraction * self.total_steps

    def last_exchange(self) -> int:
        """The last step after which weights are exchanged; 0 if there is none."""
        if not self.drop_fraction and not self.resizes:
            return 0
        last = math.ceil(self.stop_fraction * self.total_steps) - 1
        return max(0, last // self.update_interval * self.update_interval)

    def reads_gradient(self, step: int) -> bool:
        """Whether dL/dz of the whole tensor, or of `gradient_indices`, is read at `step`."""
        return False

    def gradient_indices(self, weight: SparseWeight, step: int) -> Tensor | None:
        """Indices whose gradient is read at `step`: the active ones first, in their order. None: all n."""
        return None

    @property
    def reads_start(self) -> bool:
        """Whether `SparseWeight.start` is read at exchanges."""
        return self.grow_from == "start"

    @property
    def resizes(self) -> bool:
        """Whether the number of active weights changes in training."""
        return self.initial_sparsity is not None

    def count_at(self, step: int, k: int, n: int) -> int:
        """k_t = k + (k_0 - k) (1 - t / t_stop)^3 of n weights, after the exchange of step t (Zhu and Gupta, 2017).

        k_0 is what `initial_sparsity` leaves, and k at least.
        """
        if self.initial_sparsity is None:
            return k
        first = max(k, round((1 - self.initial_sparsity) * n))
        left = 1 - min(1.0, step / max(1, self.last_exchange()))
        return k + round((first - k) * left**3)

    def begin(self, weight: SparseWeight) -> None:
        """Called for each weight before the first step, to initialize `weight.memory`."""

    def check_memory(self, weight: SparseWeight, memory: Mapping[str, Tensor]) -> None:
        """Check what a checkpoint holds of `weight.memory`, before it is used.

        Raises:
            ValueError: a tensor is not as this topology leaves it.
        """

    def observe(self, weight: SparseWeight, step: int, pace: Pace) -> None:
        """Called with `weight.gradient` at each step that reads it.

        Args:
            weight: whose gradient it is.
            step: optimizer steps done.
            pace: how far the optimizer moves active weights.
        """

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """(k,): scores of the active weights; the lowest are dropped."""
        return weight.whole_values().abs()

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of inactive weights (c,) int64, and their scores (c,); the highest grow."""
        raise NotImplementedError

    def accepts(self, drop: Tensor, grow: Tensor) -> Tensor:
        """(c,) bool: which exchanges happen, given the drop scores (rising) and grow scores (falling)."""
        return torch.ones_like(drop, dtype=torch.bool)

    def urgency(self, drop: Tensor, grow: Tensor) -> Tensor:
        """(p,): which exchanges inside groups come first, given their drop and grow scores: the highest."""
        return -drop

    def plan(self, weights: Sequence[SparseWeight], step: int, generator: torch.Generator) -> list[Move]:
        """Exchange the active weights with the lowest scores for the inactive ones with the highest.

        Before that, the lowest of all are dropped for good where fewer shall be active than before.

        Args:
            weights: one weight, or all that share a global budget; then one layer may lose weights that another gains.
            step: optimizer steps done.
            generator: source of randomness.

        Returns:
            A move for each weight; over all of them as many weights are dropped as grown, and those that are too many.
        """
        if weights[0].groups is not None:
            return [self._plan_in_groups(weight, step, generator) for weight in weights]
        drop = [self.drop_scores(weight).float() for weight in weights]
        if len(weights) > 1:
            for score in drop:
                score[score.argmax()] = torch.inf  # a layer without any weight is cut off for good
        grow = [self.grow_scores(weight, generator) for weight in weights]
        drop_score, grow_score = torch.cat(drop), torch.cat([score.float() for _, score in grow])
        wanted = sum(self.count_at(step, weight.budget, weight.numel) for weight in weights)
        surplus = max(0, len(drop_score) - wanted)  # an adapter that trains on has fewer than the fall begins with
        count = round(self.drop_fraction_at(step) * (len(drop_score) - surplus))
        count = min(count, int(drop_score.isfinite().sum()) - surplus, len(grow_score))
        lowest, slots = drop_score.topk(surplus + count, largest=False)
        highest, at = grow_score.topk(count)
        accepted = self.accepts(lowest[surplus:], highest)
        slots = torch.cat([slots[:surplus], slots[surplus:][accepted]]).sort().values
        at = at[accepted].sort().values
        slots_of = by_part(slots, [len(score) for score in drop])
        at_of = by_part(at, [len(score) for _, score in grow])
        return [(s, indices[a]) for s, a, (indices, _) in zip(slots_of, at_of, grow, strict=True)]

    def _plan_in_groups(self, weight: SparseWeight, step: int, generator: torch.Generator) -> Move:
        """As `plan`, for a weight with an N:M pattern: what a group loses, it gains.

        The weights with the lowest scores of the whole layer are dropped, and the best ones of their groups grow, as in
        SRigL, whose groups are neurons (Lasby et al., ICLR 2024, arXiv 2305.02299).
        """
        drop = self.drop_scores(weight).float()
        inactive, grow = self.grow_scores(weight, generator)
        assert weight.groups is not None
        slots, at = weight.groups.pairs(weight.indices, drop, inactive, grow.float())
        lowest, highest = drop[slots], grow[at].float()
        count = min(round(self.drop_fraction_at(step) * len(drop)), len(slots))
        first = self.urgency(lowest, highest).topk(count).indices
        accepted = first[self.accepts(lowest[first], highest[first])].sort().values
        return slots[accepted], inactive[at[accepted]]

    def before_exchange(self, weight: SparseWeight, slots: Tensor, indices: Tensor) -> Tensor | None:
        """Called before a move; returns the first values of the grown weights, (g,), or None for zeros."""
        return weight.start[indices] if self.reads_start and weight.start is not None else None

    def after_exchange(self, weight: SparseWeight) -> None:
        """Called after an exchange; `weight.gradient` is still that of the step."""


def expect(memory: Mapping[str, Tensor], name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """The tensor `name` of a saved memory, of this dtype and shape.

    Raises:
        ValueError: it is absent or different.
    """
    value = memory.get(name)
    if value is None or value.dtype != dtype or tuple(value.shape) != shape:
        found = "absent" if value is None else f"{value.dtype} {tuple(value.shape)}"
        raise ValueError(f"{name} is {found}, expected {dtype} {shape}")
    return value


def random_inactive(weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of all inactive weights, each with a uniform random score."""
    inactive = weight.inactive_indices()
    return inactive, torch.rand(len(inactive), generator=generator).to(inactive.device)


def by_part(sorted_positions: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Positions in a concatenation, rising, as positions in each of its parts."""
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    ends = starts + torch.tensor(lengths)
    cuts = torch.searchsorted(sorted_positions.cpu(), torch.stack([starts, ends]))
    return [
        sorted_positions[low:high] - start
        for low, high, start in zip(cuts[0].tolist(), cuts[1].tolist(), starts.tolist(), strict=True)
    ]


def new_topology(config: BiDSTConfig, total_steps: int) -> Topology:
    """The topology that a config names, for a training of `total_steps` optimizer steps."""
    topology: Topology = SPARSITY.row(config.topology).implementation.of(config, total_steps)
    return topology
