"""VisPruner (Zhang et al., ICCV 2025): half of the budget by attention, half by taking duplicates out of the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.steps import cosines
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

IMPORTANT = 0.5  # share of the budget that goes by importance
ROUND = 8  # most tokens dropped between two matchings


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None) -> Tensor:
    """The k/2 most important; of the others, split into every second, those most like one of the other half go first.

    The second stage does not look at what the first one took, in the paper as in the public code.

    Returns:
        (B, k) long: the important ones by falling importance, then the diverse ones by position.
    """
    ranked = importance.sort(dim=1, descending=True, stable=True).indices
    important = ranked[:, : min(k, max(1, round(IMPORTANT * k)))]
    rest = ranked[:, important.shape[1] :].sort(dim=1).values
    n, alike = features.shape[1], cosines(features).flatten(1)
    while rest.shape[1] > k - important.shape[1]:
        drop = min(ROUND, rest.shape[1] // 2, rest.shape[1] - (k - important.shape[1]))
        if drop == 0:  # a single token, and none is wanted
            return important
        even, odd = rest[:, ::2], rest[:, 1::2]
        pairs = even.unsqueeze(2) * n + odd.unsqueeze(1)
        likeness = alike.gather(1, pairs.flatten(1)).view_as(pairs).amax(-1)
        stay = likeness.sort(dim=1, descending=True, stable=True).indices[:, drop:]
        rest = torch.cat([even.gather(1, stay), odd], dim=1).sort(dim=1).values
    return torch.cat([important, rest], dim=1)
