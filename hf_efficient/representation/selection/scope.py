"""SCOPE (NeurIPS 2025): saliency times gain of coverage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.maths.steps import cosines, row_of, take_best
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None, quota: Quota | None = None) -> Tensor:
    """Next token: argmax of p_j sum_i relu(cos_ij - c_i), c_i the largest cosine of i to what is taken (at least 0).

    The paper raises the saliency to a power; the public code's default is 1, as here.

    Args:
        features: (B, N, D) float32.
        importance: (B, N) float32, >= 0: p.
        k: tokens to take.
        config: unused.
        quota: of groups, or None.

    Returns:
        (B, k) long, in the order taken. O(N²·(D + k)).
    """
    alike = cosines(features)
    covered = torch.zeros_like(importance)
    order = torch.zeros(len(features), k, dtype=torch.long, device=features.device)
    for step in range(k):
        gain = (alike - covered.unsqueeze(1)).relu().sum(-1)
        covered = torch.maximum(covered, row_of(alike, take_best(importance * gain, order, step, quota)))
    return order
