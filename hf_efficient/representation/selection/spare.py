"""Column subset selection (as in SPARE, 2026, https://arxiv.org/abs/2606.18681): the tokens that span the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .compact import over_valid, pick


@over_valid
def select(features: Tensor, importance: Tensor, k: int, config: Any = None) -> Tensor:
    """Next token: the longest residual after projecting on what is taken (Gram-Schmidt with pivoting).

    The paper also multiplies by how little a token has to do with the question ("anti-relevance"); that part is left
    out here, and importance plays no part. Known from its abstract and third-party notes.

    Args:
        features: (B, N, D) float32.
        importance: unused.
        k: tokens to take; those beyond the rank of the features go by position.
        config: unused.

    Returns:
        (B, k) long, in the order taken. O(k·N·D).
    """
    rest = features.clone()
    least = 1e-5 * torch.linalg.vector_norm(features, dim=-1).amax(1, keepdim=True)
    order = torch.zeros(len(features), k, dtype=torch.long, device=features.device)
    for step in range(k):
        length = torch.linalg.vector_norm(rest, dim=-1)
        chosen = pick(torch.where(length > least, length, 0), order, step)
        held = length.gather(1, chosen)
        direction = (
            rest.gather(1, chosen.unsqueeze(-1).expand(-1, -1, rest.shape[-1])) / held.clamp_min(1e-30)[..., None]
        )
        direction = direction * (held > least).unsqueeze(-1)
        rest = rest - torch.bmm(rest, direction.transpose(1, 2)) * direction
    return order
