"""V-CAST (Lin et al., 2026, https://arxiv.org/abs/2603.27650): frames share the budget by how sharply a video turns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.representation.maths.mixture import sum_by
from hf_efficient.representation.maths.sharing import share_budget

TEMPERATURE = 0.7  # of the softmax over the frames' curvature


@torch.no_grad()
def select(
    features: Tensor,
    importance: Tensor,
    k: int,
    config: Any = None,
    *,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Each frame gets one token and its part of the rest by softmax of curvature; inside, the unusual and long tokens.

    Curvature of frame t is 1 - cos(r_t - r_(t-1), r_(t+1) - r_t), 1 at both ends, r_t the frame's mean as a unit
    vector. Inside a frame tokens go by 1 - cos(x, r_t) + |x|, lengths scaled to [0, 1]. What rounding leaves over goes
    one by one to the frames with the largest parts (in the public code all of it to the one with the largest
    fraction). That code leaves single frames alone; here they are a video of one frame. Importance plays no part.

    Args:
        features: (B, N, D) float32.
        importance: unused.
        k: tokens to take.
        config: unused.
        groups: (B, N) long, frame of every token, or None for a single frame.
        valid: (B, N) bool or None; tokens marked False are never taken, and frames know nothing of them.

    Returns:
        (B, k) long, frame after frame, by falling score.
    """
    batch, n, _ = features.shape
    counts = torch.ones(batch, n, device=features.device) if valid is None else valid.float()
    frame = torch.zeros_like(counts, dtype=torch.long) if groups is None else numbered(groups, counts > 0)
    frames = int(frame.max()) + 1
    size = sum_by(frame, counts.unsqueeze(-1), frames).squeeze(-1)
    mean = F.normalize(sum_by(frame, features * counts.unsqueeze(-1), frames), dim=-1)
    there = size > 0
    number = there.sum(1, keepdim=True)
    least = (there & (number <= k)).long()
    parts = (curvature(mean, number) / TEMPERATURE).masked_fill(~there, -torch.inf).softmax(-1)
    given = least + share_budget(parts, size.long() - least, k - least.sum(1, keepdim=True))
    here = mean.gather(1, frame.unsqueeze(-1).expand_as(features))
    length = torch.linalg.vector_norm(features, dim=-1)
    score = 1 - F.cosine_similarity(features, here, dim=-1) + scaled(length, frame, frames, counts > 0)
    ranked = score.masked_fill(counts == 0, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    by_frame = ranked.gather(1, frame.gather(1, ranked).sort(dim=1, stable=True).indices)
    every = sum_by(frame, torch.ones_like(counts).unsqueeze(-1), frames).squeeze(-1).long()
    order = frame.gather(1, by_frame)
    rank = torch.arange(n, device=features.device) - (every.cumsum(1) - every).gather(1, order)
    return by_frame[rank < given.gather(1, order)].view(batch, k)


def numbered(groups: Tensor, counts: Tensor) -> Tensor:
    """Groups (B, N) long numbered from 0 in every row, those alone that hold tokens that count (B, N) bool; else 0."""
    lowest = groups.masked_fill(~counts, torch.iinfo(groups.dtype).max).amin(1, keepdim=True)
    ranked, order = groups.where(counts, lowest).sort(dim=1)
    rank = F.pad(ranked.diff(dim=1) != 0, (1, 0)).cumsum(1)
    return torch.zeros_like(groups).scatter(1, order, rank)


def curvature(frames: Tensor, number: Tensor) -> Tensor:
    """How sharply the way through frames turns at each, (B, T) in [0, 2]; both ends 1.

    Args:
        frames: (B, T, D).
        number: (B, 1) long, how many there are; those after are of no meaning.
    """
    steps = frames.diff(dim=1)
    turns = 1 - F.cosine_similarity(steps[:, :-1], steps[:, 1:], dim=-1)
    turns = F.pad(turns, (1, 1), value=1.0)[:, : frames.shape[1]]
    return turns.masked_fill(torch.arange(frames.shape[1], device=frames.device) == number - 1, 1.0)


def scaled(values: Tensor, frame: Tensor, frames: int, counts: Tensor) -> Tensor:
    """Values (B, N) from smallest to largest of their frame to [0, 1]; where `counts` is False they play no part."""
    none = values.new_zeros(len(values), frames)
    low = none.scatter_reduce(1, frame, values.masked_fill(~counts, torch.inf), "amin", include_self=False)
    high = none.scatter_reduce(1, frame, values.masked_fill(~counts, -torch.inf), "amax", include_self=False)
    span = (high - low).gather(1, frame)
    return ((values - low.gather(1, frame)) / torch.where(span > 0, span, 1)).masked_fill(~counts, 0)
