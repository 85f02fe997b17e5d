"""IDPruner (Tencent, 2026, https://arxiv.org/abs/2602.13315): maximal marginal relevance. Not to be confused with
ID-Pruner of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.importance import rescale
from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.maths.steps import cosines, row_of, take_best
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

BALANCE = 0.5


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None, quota: Quota | None = None) -> Tensor:
    """Next token: argmax of l imp_i - (1 - l) max_{j taken} cos(x_i, x_j), l = 1/2; the first by importance alone.

    The paper's importance is a trained scorer's, scaled from smallest to largest; here it is what the config says. The
    public code works on batches of one.

    Returns:
        (B, k) long, in the order taken. O(N²·D + k·N).
    """
    importance, alike = rescale(importance), cosines(features)
    order = torch.zeros(len(features), k, dtype=torch.long, device=features.device)
    nearest = torch.full_like(importance, -torch.inf)
    scores = importance
    for step in range(k):
        chosen = take_best(scores, order, step, quota)
        nearest = torch.maximum(nearest, row_of(alike, chosen))
        scores = BALANCE * importance - (1 - BALANCE) * nearest
    return order
