"""Methods that look at places or at all pairs, run on the valid tokens alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .mixture import Mixture


def over_valid(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let `method(features, importance, k, config)` take `groups` (unused) and `valid`, and work without gradient.

    With `valid`, every unit is handed over by itself, without its invalid tokens; the result is in places of the whole.
    """

    @torch.no_grad()
    @functools.wraps(method)
    def run(
        features: Tensor,
        importance: Tensor,
        k: int,
        config: Any = None,
        *,
        groups: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Any:
        if valid is None:
            return method(features, importance, k, config)
        places = [row.nonzero().squeeze(1) for row in valid]
        results = [
            method(x[at][None], p[at][None], k, config) for x, p, at in zip(features, importance, places, strict=True)
        ]
        if isinstance(results[0], Mixture):
            return spread([spread_one(r, at, valid.shape[1]) for r, at in zip(results, places, strict=True)])
        return torch.stack([at[order[0]] for order, at in zip(results, places, strict=True)])

    return run


def spread_one(made: Mixture, at: Tensor, n: int) -> tuple[Tensor, ...]:
    """Anchors, assignment (n,), weights, source and target of a mixture of one unit, in places of all n tokens."""
    assignment = made.assignment.new_zeros(n).scatter(0, at, made.assignment[0])
    source = at if made.source is None else at[made.source[0]]
    target = (made.assignment if made.target is None else made.target)[0]
    return at[made.anchors[0]], assignment, made.weights[0], source, target


def spread(rows: list[tuple[Tensor, ...]]) -> Mixture:
    """One mixture of the parts of several units; shorter ones are filled up with parts of weight 0."""
    anchors, assignment, *parts = zip(*rows, strict=True)
    weights, source, target = (pad_sequence(list(part), batch_first=True) for part in parts)
    return Mixture(torch.stack(anchors), torch.stack(assignment), weights, source, target)


def cosines(features: Tensor) -> Tensor:
    """All pairwise cosines (B, N, N) of features (B, N, D); of a zero vector 0."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    return torch.bmm(unit, unit.transpose(1, 2))


def pick(scores: Tensor, order: Tensor, step: int) -> Tensor:
    """The largest score (B, N) of tokens that are not in order[:, :step], written to order[:, step]; (B, 1) long."""
    chosen = scores.scatter(1, order[:, :step], -torch.inf).argmax(1, keepdim=True)
    order[:, step : step + 1] = chosen
    return chosen


def row_of(matrix: Tensor, chosen: Tensor) -> Tensor:
    """Row `chosen` (B, 1) of every matrix (B, N, N): (B, N)."""
    return matrix.gather(1, chosen.unsqueeze(-1).expand(-1, -1, matrix.shape[2])).squeeze(1)
