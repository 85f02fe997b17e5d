"""ID-Selection (2026, https://arxiv.org/abs/2604.05601): importance, suppressed around what is taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.importance import rescale
from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.maths.steps import cosines, row_of, take_best
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

SHARPNESS = 20.0  # gamma


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None, quota: Quota | None = None) -> Tensor:
    """Take the best score s; then s_j <- s_j - exp(-gamma d_ij²) s_i for all j, with d = 1 - cosine.

    Known from the abstract and from third-party code, which agree; the authors' code was not seen.

    Args:
        features: (B, N, D) float32.
        importance: (B, N) float32, scaled to [0, 1] here.
        k: tokens to take.
        config: unused.
        quota: of groups, or None.

    Returns:
        (B, k) long, in the order taken. O(N²·D + k·N).
    """
    suppression = (-SHARPNESS * (1 - cosines(features)).square()).exp()
    scores = rescale(importance)
    order = torch.zeros(len(features), k, dtype=torch.long, device=features.device)
    for step in range(k):
        chosen = take_best(scores, order, step, quota)
        scores = scores - row_of(suppression, chosen) * scores.gather(1, chosen)
    return order
