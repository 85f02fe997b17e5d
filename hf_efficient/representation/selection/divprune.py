"""Max-min diversity: every next token is the one farthest from all taken (Gonzalez, 1985; for visual tokens DivPrune,
Alvar et al., CVPR 2025, https://arxiv.org/abs/2503.02175)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.maths.steps import cosines, row_of, take_best
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None, quota: Quota | None = None) -> Tensor:
    """Farthest-point order on d_ij = 1 - cos(x_i, x_j); the first token is the one whose nearest other is farthest.

    Args:
        features: (B, N, D) float32.
        importance: unused.
        k: tokens to take.
        config: unused.
        quota: of groups, or None.

    Returns:
        (B, k) long, in the order taken; equal distances by rising index.
    """
    distance = 1 - cosines(features)
    itself = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
    nearest = distance.masked_fill(itself, torch.inf).amin(-1)
    order = torch.zeros(len(features), k, dtype=torch.long, device=features.device)
    for step in range(k):
        row = row_of(distance, take_best(nearest, order, step, quota))
        nearest = row if step == 0 else torch.minimum(nearest, row)
    return order
