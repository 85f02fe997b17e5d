"""CDPruner (Zhang et al., NeurIPS 2025, https://arxiv.org/abs/2506.10967): a determinantal point process conditioned
on how relevant a token is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.importance import rescale
from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.maths.steps import cosines, row_of, take_best
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

#: Share of a token's own r² below which what is left of it may be float32's rounding: it counts as spanned.
ROUNDING = 2e-6


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None, quota: Quota | None = None) -> Tensor:
    """Greedy maximum of det of the kernel L_ij = r_i cos_ij r_j, by incremental Cholesky factors.

    In the paper r is the relevance to the question: set `question_weight=1`. The public code scales r by the smallest
    and largest value of the whole batch, so that an image's tokens depend on its batch mates, and takes the negated
    mean cosine to the words in CLIP's space; here r is scaled within the unit, and its sign is that of the importance.

    Args:
        features: (B, N, D) float32.
        importance: (B, N) float32, scaled to [0, 1] here: r.
        k: tokens to take; once the kernel's rank is used up, the rest go by importance.
        config: unused.
        quota: of groups, or None.

    Returns:
        (B, k) long, in the order taken. O(N²·D + N·k²).
    """
    relevance = rescale(importance) + 1e-6
    kernel = relevance.unsqueeze(2) * cosines(features) * relevance.unsqueeze(1)
    left = relevance.square() * (features.square().sum(-1) > 0)  # what a token adds to the determinant
    floor = ROUNDING * relevance.square()  # own, not the largest: of little relevance is not the same as spanned
    factors = features.new_zeros(len(features), k, features.shape[1])
    order = torch.zeros(len(features), k, dtype=torch.long, device=features.device)
    for step in range(k):
        adds = left > floor
        chosen = take_best(torch.where(adds, left, relevance - 2), order, step, quota)
        index = chosen.unsqueeze(1).expand(-1, step, -1)
        known = torch.bmm(factors[:, :step].gather(2, index).transpose(1, 2), factors[:, :step]).squeeze(1)
        rest = left.gather(1, chosen)
        row = (row_of(kernel, chosen) - known) / rest.sqrt()
        factors[:, step] = torch.where(adds.gather(1, chosen), row, 0)
        left = left - factors[:, step].square()
    return order
