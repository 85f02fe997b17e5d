"""ToMe (Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461): bipartite soft matching, in rounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.representation.maths.mixture import Mixture, mass, sum_by
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens


@on_valid_tokens
def generate(features: Tensor, importance: Tensor, k: int, config: Any = None) -> Mixture:
    """Every second token looks for the one most like it among the others; the r best pairs merge by weighted mean.

    The paper merges inside the encoder, r tokens a layer, by its keys; here rounds follow each other on the finished
    tokens, each merging up to half, until k are left. Importance plays no part. The paper goes on with proportional
    attention: `proportional_attention=True`.

    Args:
        features: (B, N, D) float32.
        importance: unused.
        k: tokens to have.
        config: unused.

    Returns:
        The mixture: plain means; the anchor of a group is its first member.
    """
    batch, n, _ = features.shape
    tokens, size = features, features.new_ones(batch, n, 1)
    group = torch.arange(n, device=features.device).expand(batch, -1)
    while tokens.shape[1] > k:
        count = tokens.shape[1]
        merge = min(count - k, count // 2)
        unit = F.normalize(tokens, dim=-1)
        best, partner = torch.bmm(unit[:, ::2], unit[:, 1::2].transpose(1, 2)).max(-1)
        ranked = best.sort(dim=1, descending=True, stable=True).indices
        leaves, stays = ranked[:, :merge], ranked[:, merge:].sort(dim=1).values
        goal = torch.empty(batch, count, dtype=torch.long, device=features.device)
        goal[:, 1::2] = torch.arange(count // 2, device=features.device) + stays.shape[1]
        even = torch.zeros_like(best, dtype=torch.long)
        even = even.scatter(1, stays, torch.arange(stays.shape[1], device=features.device).expand(batch, -1))
        goal[:, ::2] = even.scatter(1, leaves, partner.gather(1, leaves) + stays.shape[1])
        sums, size = sum_by(goal, tokens * size, count - merge), sum_by(goal, size, count - merge)
        tokens, group = sums / size, goal.gather(1, group)
    indices = torch.arange(n, device=features.device).expand(batch, -1)
    first = torch.full((batch, k), n, device=features.device).scatter_reduce(1, group, indices, "amin")
    anchors, order = first.sort(dim=1)
    assignment = order.argsort(dim=1).gather(1, group)
    return Mixture(anchors, assignment, 1 / mass(assignment, k).gather(1, assignment))
