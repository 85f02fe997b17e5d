"""N:M patterns: of every M entries that are neighbours along the inputs, N are active (2:4 is what GPUs compute)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_efficient.reading import shown


class NMPattern(NamedTuple):
    """N of every M.

    Args:
        kept: N, active entries of a group.
        of: M, entries of a group.
    """

    kept: int
    of: int

    @classmethod
    def parse(cls, text: object) -> NMPattern:
        """The pattern that "N:M" names.

        Raises:
            ValueError: it is not of this form, or not 0 < N < M.
        """
        found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", text) if isinstance(text, str) else None
        kept, of = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 0 < kept < of:
            raise ValueError(f"pattern={shown(text)} is out of range; expected 'N:M' with 0 < N < M, e.g. '2:4'.")
        return cls(kept, of)

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    @property
    def sparsity(self) -> float:
        """Share of inactive entries."""
        return 1 - self.kept / self.of

    def check_inputs(self, layers: Iterable[tuple[str, int]]) -> None:
        """Check that groups fill the inputs of every layer.

        Args:
            layers: names, and how many inputs each has.

        Raises:
            ValueError: M does not divide one of them.
        """
        unfit = {name: inputs for name, inputs in layers if inputs % self.of}
        if unfit:
            first, inputs = next(iter(unfit.items()))
            raise ValueError(
                f"{first!r} has {inputs} inputs, which pattern '{self}' does not divide. Leave out the layers that do "
                f"not fit: exclude_modules={list(unfit)}."
            )


@dataclass(frozen=True)
class Groups:
    """The groups of M entries of a tensor, N of each active.

    Args:
        pattern: N and M.
        shape: (before, inputs, after), the tensor with the dimensions before and behind its inputs flattened; M divides
            the inputs.
    """

    pattern: NMPattern
    shape: tuple[int, int, int]

    @classmethod
    def along(cls, pattern: NMPattern, shape: Sequence[int], axis: int) -> Groups:
        """The groups of a tensor whose inputs are its dimension `axis`."""
        return cls(pattern, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))

    @property
    def active(self) -> int:
        """k, the active entries of the whole tensor."""
        return math.prod(self.shape) // self.pattern.of * self.pattern.kept

    def of(self, indices: Tensor) -> Tensor:
        """The number of the group that each entry lies in, int64 of the same shape."""
        after = self.shape[2]
        return indices.long() // (self.pattern.of * after) * after + indices.long() % after

    def best(self, scores: Tensor) -> Tensor:
        """(k,) int64, rising: the indices of the N entries of each group with the largest scores, which are (n,)."""
        grouped = self._grouped(scores)
        largest = grouped.topk(self.pattern.kept, dim=2).indices
        return torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, largest, True).flatten().nonzero().flatten()

    def surplus(self, indices: Tensor, scores: Tensor) -> Tensor:
        """(k,) bool: the active entries that are not among the N of their group with the largest scores.

        Args:
            indices: (k,) integer, the active entries, N or more of each group.
            scores: (k,) of these entries.
        """
        kept = torch.zeros(math.prod(self.shape), dtype=torch.bool, device=scores.device)
        return ~kept.index_fill_(0, self.best(self._whole(indices, scores)), True)[indices.long()]

    def pairs(self, active: Tensor, drop: Tensor, inactive: Tensor, grow: Tensor) -> tuple[Tensor, Tensor]:
        """All exchanges inside groups: a group's lowest active entry for its highest inactive one, and so on.

        Args:
            active: (k,) integer, the active entries.
            drop: (k,) float, their scores.
            inactive: (c,) integer, entries that may grow.
            grow: (c,) float, their scores.

        Returns:
            Positions in `active` and in `inactive`, (p,) int64 each: the entries of each pair lie in one group.
        """
        slot, lowest = self._in_order(active, drop)
        at, highest = self._in_order(inactive, -grow)
        both = lowest.isfinite() & highest.isfinite()
        return slot[both], at[both]

    def check(self, indices: Tensor, name: str) -> None:
        """Check that every group has N of these active entries, or more where the whole tensor has more than k.

        Raises:
            ValueError: a group has fewer.
        """
        counts = torch.bincount(self.of(indices), minlength=math.prod(self.shape) // self.pattern.of)
        if int(counts.min()) < self.pattern.kept:
            raise ValueError(
                f"{name}: the indices of the active weights are damaged: a group of {self.pattern.of} inputs has "
                f"{int(counts.min())} active weights, expected {self.pattern.kept} by pattern '{self.pattern}'. The "
                "file is corrupt or was written for another pattern; fetch it again."
            )

    def most_in_one(self, weight: Tensor) -> int:
        """How many entries of a group of a dense tensor are not zero, at most."""
        return int(self._grouped(weight.detach().flatten() != 0).sum(2).max())

    def check_zeros(self, weight: Tensor, name: str) -> None:
        """Check that a dense tensor has the pattern: at most N entries of each group that are not zero.

        Raises:
            ValueError: a group has more.
        """
        most = self.most_in_one(weight)
        if most > self.pattern.kept:
            raise ValueError(
                f"distribution='as_pruned' with pattern='{self.pattern}': {name!r} has {most} weights that are not "
                f"zero among {self.pattern.of} neighbouring inputs. Prune it first, prune_wanda(model, batches, "
                f"pattern='{self.pattern}'), or leave out distribution: the largest of each group are then kept."
            )

    def _grouped(self, whole: Tensor) -> Tensor:
        """(n,) -> (before, groups, M, after), a view."""
        before, inputs, after = self.shape
        return whole.view(before, inputs // self.pattern.of, self.pattern.of, after)

    def _whole(self, indices: Tensor, scores: Tensor, others: float = -torch.inf) -> Tensor:
        """(n,): scores at their indices, and `others` elsewhere."""
        return scores.new_full((math.prod(self.shape),), others).index_put_((indices.long(),), scores)

    def _in_order(self, indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Each group's entries by rising score: their positions in `indices`, and scores, inf where there are no more.

        As many of each group as can be exchanged, min(N, M - N).
        """
        position = torch.zeros(math.prod(self.shape), dtype=torch.int64, device=indices.device)
        position[indices.long()] = torch.arange(len(indices), device=indices.device)
        lowest, order = self._grouped(self._whole(indices, scores, torch.inf)).sort(dim=2, stable=True)
        most = min(self.pattern.kept, self.pattern.of - self.pattern.kept)
        return self._grouped(position).gather(2, order)[:, :, :most], lowest[:, :, :most]
