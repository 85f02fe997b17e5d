"""Video: what does not change from frame to frame is merged before anything is chosen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .mixture import Mixture, sum_by


class Runs(NamedTuple):
    """Tokens of one place that stay alike over consecutive frames.

    Args:
        start: (B, N) long, the first token of the run that each token belongs to.
        length: (B, N) float32, tokens in that run.
    """

    start: Tensor
    length: Tensor

    @property
    def starts(self) -> Tensor:
        """(B, N) bool: which tokens begin a run."""
        return self.start == torch.arange(self.start.shape[1], device=self.start.device)

    def mean(self, values: Tensor) -> Tensor:
        """Every token of values (B, N, D) replaced by the mean of its run."""
        sums = sum_by(self.start, values, values.shape[1]) / sum_by(
            self.start, torch.ones_like(values), values.shape[1]
        )
        return sums.gather(1, self.start.unsqueeze(-1).expand_as(values))

    def total(self, importance: Tensor, power: float = 1.0) -> Tensor:
        """The importance (B, N) of whole runs, (sum p^power)^(1/power): to that power, what its tokens have together.

        Args:
            importance: (B, N) float32, >= 0.
            power: >= 1.
        """
        if power != 1:
            peak = importance.amax(1, keepdim=True)  # large scores would overflow
            importance = (importance / torch.where(peak > 0, peak, 1)).pow(power)
        sums = sum_by(self.start, importance.unsqueeze(-1), importance.shape[1]).squeeze(-1)
        return sums.gather(1, self.start).pow(1 / power)

    def of_tokens(self, made: Mixture) -> Mixture:
        """A mixture of runs, which stand at their first tokens, as a mixture of all their tokens."""
        weights = made.weights.gather(1, self.start) / self.length
        return Mixture(made.anchors, made.assignment.gather(1, self.start), weights, keep_norm=made.keep_norm)


def static_runs(features: Tensor, groups: Tensor, alike: float, least: int) -> Runs | None:
    """Runs of tokens whose cosine to the same place one frame before is at least `alike`.

    Args:
        features: (B, N, D) float32, frame after frame.
        groups: (B, N) long, frame of every token.
        alike: cosine from which a token counts as unchanged.
        least: runs to have at least; where more is static, the tokens that changed most begin runs.

    Returns:
        The runs, or None where tokens form no equal frames (a single image).
    """
    n, frames = features.shape[1], int(groups.max()) + 1
    size = n // frames
    if frames < 2 or size * frames != n or not torch.equal(groups[0], torch.arange(n, device=groups.device) // size):
        return None
    unit = F.normalize(features, dim=-1).unflatten(1, (frames, size))
    same = (unit[:, 1:] * unit[:, :-1]).sum(-1).flatten(1)  # (B, N - size)
    change = torch.cat([torch.full_like(same[:, :1].expand(-1, size), torch.inf), 1 - same], dim=1)
    rank = change.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    begins = (change > 1 - alike) | (rank < least)
    place = torch.arange(n, device=features.device).expand_as(rank)
    start = torch.where(begins, place, -1).unflatten(1, (frames, size)).cummax(1).values.flatten(1)
    length = sum_by(start, torch.ones_like(change).unsqueeze(-1), n).squeeze(-1).gather(1, start)
    return Runs(start, length)
