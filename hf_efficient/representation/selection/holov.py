"""HoloV (Zou et al., NeurIPS 2025, https://arxiv.org/abs/2510.02912): a budget for every crop, attention inside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.importance import shares
from hf_efficient.representation.maths.sharing import share_budget
from hf_efficient.representation.maths.steps import cosines
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

CROPS = 16
VARIETY = 0.09  # weight of the variance of cosines beside attention


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None) -> Tensor:
    """Crops get tokens in proportion to their mean of attention + variety; each takes its most important ones.

    Crops are stretches of the sequence, as in the public code (so bands of the image, not blocks). That code scales
    variety to the mean attention of its own crop, which cancels it from the crop's score; here it is scaled over the
    image. That code fills up with zeros where a crop has fewer tokens than it was given, and returns tokens out of
    order; here the surplus goes to the other crops.

    Returns:
        (B, k) long, by falling importance within crops.
    """
    n = features.shape[1]
    crop = torch.arange(n, device=features.device) * min(CROPS, n) // n
    same = (crop[:, None] == crop) & ~torch.eye(n, dtype=torch.bool, device=features.device)
    alike, size = cosines(features), same.sum(-1).clamp_min(1)
    mean = (alike * same).sum(-1) / size
    variety = ((alike - mean.unsqueeze(-1)).square() * same).sum(-1) / size
    score = shares(importance) + VARIETY * shares(variety)
    count = torch.bincount(crop)
    weights = torch.zeros(len(features), len(count), device=features.device).index_add(1, crop, score) / count
    given = share_budget(weights, count, k)
    ranked = importance.sort(dim=1, descending=True, stable=True).indices
    by_crop = ranked.gather(1, crop[ranked].sort(dim=1, stable=True).indices)  # crops in order, importance falling
    rank = torch.arange(n, device=features.device) - (count.cumsum(0) - count)[crop]
    taken = rank < given.gather(1, crop.expand(len(features), -1))
    return by_crop[taken].view(len(features), k)
