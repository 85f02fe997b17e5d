"""The k most important tokens: stage I alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.maths.steps import take_best
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None, quota: Quota | None = None) -> Tensor:
    """Tokens by falling importance; equal ones by rising index.

    Args:
        features: (B, N, D), unused.
        importance: (B, N) float32.
        k: tokens to take.
        config: unused.
        quota: of groups, or None.

    Returns:
        (B, k) long, in the order taken.
    """
    if quota is None:
        return importance.sort(dim=1, descending=True, stable=True).indices[:, :k]
    order = torch.zeros(len(importance), k, dtype=torch.long, device=importance.device)
    for step in range(k):
        take_best(importance, order, step, quota)
    return order
