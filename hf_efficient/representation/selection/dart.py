"""DART (Wen et al., EMNLP 2025, https://arxiv.org/abs/2502.11494): a few pivots, and what is least like each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.steps import cosines
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

PIVOTS = 8


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None) -> Tensor:
    """Pivots by length; then every pivot in turn takes its share of the tokens least like it that are left.

    The paper picks pivots among keys inside the language model (four visual, four words, by their 1-norm); here, before
    it, among the visual tokens, by the 1-norm of their features. The public code may take fewer tokens than asked for,
    as pivots choose some twice; here each chooses among what is left. Importance plays no part.

    Args:
        features: (B, N, D) float32.
        importance: unused.
        k: tokens to take.
        config: unused.

    Returns:
        (B, k) long, pivots first.
    """
    pivots = features.abs().sum(-1).sort(dim=1, descending=True, stable=True).indices[:, : min(PIVOTS, k)]
    alike, order = cosines(features), pivots
    for turn in range(pivots.shape[1]):
        share = -(-(k - order.shape[1]) // (pivots.shape[1] - turn))
        scores = alike.gather(1, pivots[:, turn, None, None].expand(-1, -1, alike.shape[2])).squeeze(1)
        scores = scores.scatter(1, order, torch.inf)
        order = torch.cat([order, scores.sort(dim=1, stable=True).indices[:, :share]], dim=1)
    return order
