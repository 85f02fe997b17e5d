"""Centred DivPrune (Cen-Prune, 2026): max-min diversity of centred tokens, times how far a token is from all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.importance import distinctiveness
from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.maths.steps import cosines, row_of, take_best
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None, quota: Quota | None = None) -> Tensor:
    """Next token: argmax of g_i min_{j taken} d_ij, d = 1 - cosine of the centred tokens, g the distinctiveness.

    g is minus the mean cosine to the other tokens before centring, scaled to [0, 1]: centring takes out the direction
    that all share, and with it a preference for distinct tokens, which g gives back. Importance plays no part.

    Args:
        features: (B, N, D) float32.
        importance: unused.
        k: tokens to take.
        config: unused.
        quota: of groups, or None.

    Returns:
        (B, k) long, in the order taken.
    """
    distinct = distinctiveness(features)
    distance = 1 - cosines(features - features.mean(1, keepdim=True))
    itself = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
    nearest = distance.masked_fill(itself, torch.inf).amin(-1)
    order = torch.zeros(len(features), k, dtype=torch.long, device=features.device)
    for step in range(k):
        row = row_of(distance, take_best(nearest * distinct if features.shape[1] > 1 else distinct, order, step, quota))
        nearest = row if step == 0 else torch.minimum(nearest, row)
    return order
