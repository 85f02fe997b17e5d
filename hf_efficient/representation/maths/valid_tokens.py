"""Run a method on the valid tokens of each unit alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .mixture import Mixture
from .quota import Quota


def on_valid_tokens(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let `method(features, importance, k, config)` take `groups` and `valid`, and work without gradient.

    With `valid`, the method gets each unit by itself, without its invalid tokens; the result holds indices into the
    whole unit. Where the config guarantees groups a share, the method also gets `quota`, for `take_best` to keep:
    configs refuse that for methods that do not take one.
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
        indices = [row.nonzero().squeeze(1) for row in valid]
        results = []
        for u, at in enumerate(indices):
            x, p = features[u, at][None], importance[u, at][None]
            group = None if groups is None else groups[u, at][None]
            results.append(method(x, p, k, config, **_quota(p, k, config, group)))
        if isinstance(results[0], Mixture):
            return _joined(results, indices, valid.shape[1])
        return torch.stack([at[order[0]] for order, at in zip(results, indices, strict=True)])

    return run


def _quota(importance: Tensor, k: int, config: Any, groups: Tensor | None) -> dict[str, Quota]:
    """The keyword of what the groups of valid tokens are owed, where they are owed anything."""
    quota = Quota.of(importance, k, config, groups)
    return {} if quota is None else {"quota": quota}


def _joined(made: list[Mixture], indices: list[Tensor], n: int) -> Mixture:
    """One mixture of those of several units, over all n tokens; tokens that are in none have weight 0."""
    anchors = torch.stack([at[one.anchors[0]] for one, at in zip(made, indices, strict=True)])
    empty = anchors.new_zeros(n)
    assignment = torch.stack([empty.scatter(0, at, one.assignment[0]) for one, at in zip(made, indices, strict=True)])
    if made[0].source is None:
        weights = [empty.float().scatter(0, at, one.weights[0]) for one, at in zip(made, indices, strict=True)]
        return Mixture(anchors, assignment, torch.stack(weights))
    sources = [at[one.source[0]] for one, at in zip(made, indices, strict=True) if one.source is not None]
    targets = [one.target[0] for one in made if one.target is not None]
    parts = ([one.weights[0] for one in made], sources, targets)
    filled, source, target = (pad_sequence(part, batch_first=True) for part in parts)
    return Mixture(anchors, assignment, filled, source, target)
