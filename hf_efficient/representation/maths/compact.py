"""Methods that look at places or at all pairs, run on the valid tokens alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .mixture import Mixture
from .quota import Quota


def over_valid(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let `method(features, importance, k, config)` take `groups` and `valid`, and work without gradient.

    With `valid`, every unit is handed over by itself, without its invalid tokens; the result is in places of the whole.
    Where the config guarantees groups a share, the method is also given `quota`, for `pick` to keep: configs refuse
    that for methods that do not take one.
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
            return method(features, importance, k, config, **_quota(importance, k, config, groups))
        places = [row.nonzero().squeeze(1) for row in valid]
        results = []
        for u, at in enumerate(places):
            x, p = features[u, at][None], importance[u, at][None]
            group = None if groups is None else groups[u, at][None]
            results.append(method(x, p, k, config, **_quota(p, k, config, group)))
        if isinstance(results[0], Mixture):
            return spread(results, places, valid.shape[1])
        return torch.stack([at[order[0]] for order, at in zip(results, places, strict=True)])

    return run


def _quota(importance: Tensor, k: int, config: Any, groups: Tensor | None) -> dict[str, Quota]:
    """The keyword of what the groups of valid tokens are owed, where they are owed anything."""
    quota = Quota.of(importance, k, config, groups)
    return {} if quota is None else {"quota": quota}


def spread(made: list[Mixture], places: list[Tensor], n: int) -> Mixture:
    """One mixture of those of several units, in places of all n tokens; tokens without a place have weight 0."""
    anchors = torch.stack([at[one.anchors[0]] for one, at in zip(made, places, strict=True)])
    empty = anchors.new_zeros(n)
    assignment = torch.stack([empty.scatter(0, at, one.assignment[0]) for one, at in zip(made, places, strict=True)])
    if made[0].source is None:
        weights = [empty.float().scatter(0, at, one.weights[0]) for one, at in zip(made, places, strict=True)]
        return Mixture(anchors, assignment, torch.stack(weights))
    sources = [at[one.source[0]] for one, at in zip(made, places, strict=True) if one.source is not None]
    targets = [one.target[0] for one in made if one.target is not None]
    parts = ([one.weights[0] for one in made], sources, targets)
    filled, source, target = (pad_sequence(part, batch_first=True) for part in parts)
    return Mixture(anchors, assignment, filled, source, target)


def cosines(features: Tensor) -> Tensor:
    """All pairwise cosines (B, N, N) of features (B, N, D); of a zero vector 0."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    return torch.bmm(unit, unit.transpose(1, 2))


def pick(scores: Tensor, order: Tensor, step: int, quota: Quota | None = None) -> Tensor:
    """The largest score (B, N) of tokens that are not in order[:, :step], written to order[:, step]; (B, 1) long.

    With `quota`, groups that have to leave the steps to others are passed over.
    """
    if quota is not None:
        scores = scores.masked_fill(quota.closed(), -torch.inf)
    chosen = scores.scatter(1, order[:, :step], -torch.inf).argmax(1, keepdim=True)
    order[:, step : step + 1] = chosen
    if quota is not None:
        quota.take(chosen)
    return chosen


def row_of(matrix: Tensor, chosen: Tensor) -> Tensor:
    """Row `chosen` (B, 1) of every matrix (B, N, N): (B, N)."""
    return matrix.gather(1, chosen.unsqueeze(-1).expand(-1, -1, matrix.shape[2])).squeeze(1)
