"""LLaVA-PruMerge+ (Shang et al., ICCV 2025, https://arxiv.org/abs/2403.15388): attention, even samples, neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.representation.maths.importance import shares
from hf_efficient.representation.maths.mixture import Mixture
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

BY_ATTENTION = 0.25  # the public code samples three positions evenly for one outlier of attention
NEIGHBOURS = 32


@on_valid_tokens
def generate(features: Tensor, importance: Tensor, k: int, config: Any = None) -> Mixture:
    """The most attended tokens and evenly spaced ones; each adds its nearest neighbours, weighted by attention.

    z_k = x_k + sum over its 32 nearest of a_j x_j, as in the public code; the paper writes a weighted average. That
    code keeps as many as attention has outliers (by quartiles) and one token more for all that is left; with a strict
    budget the number is given and there is no such token. It compares keys of the encoder, whose heads it does not
    split; here features are compared. Neighbours may be kept tokens, and may be taken in by several.

    Args:
        features: (B, N, D) float32.
        importance: (B, N) float32: a, as shares.
        k: tokens to have.
        config: unused.

    Returns:
        The mixture.
    """
    batch, n = importance.shape
    attention = shares(importance)
    ranked = importance.sort(dim=1, descending=True, stable=True).indices
    top = max(1, round(BY_ATTENTION * k))
    rest = ranked[:, top:].sort(dim=1).values
    spaced = (2 * torch.arange(k - top, device=features.device) + 1) * rest.shape[1] // max(1, 2 * (k - top))
    anchors = torch.cat([ranked[:, :top], rest[:, spaced]], dim=1).sort(dim=1).values
    unit = F.normalize(features, dim=-1)
    alike = torch.bmm(unit.gather(1, anchors.unsqueeze(-1).expand(-1, -1, unit.shape[-1])), unit.transpose(1, 2))
    own = torch.arange(k, device=features.device).expand(batch, -1)
    assignment = alike.argmax(1).scatter(1, anchors, own)
    others = alike.scatter(2, anchors.unsqueeze(-1), -torch.inf)
    m = min(NEIGHBOURS, n - 1)
    near = others.topk(m, dim=2).indices
    weights = torch.cat([torch.ones_like(anchors[..., None], dtype=torch.float32),
                         attention.unsqueeze(1).expand(-1, k, -1).gather(2, near)], dim=2)  # fmt: skip
    source = torch.cat([anchors.unsqueeze(-1), near], dim=2)
    target = own.unsqueeze(-1).expand_as(source)
    return Mixture(anchors, assignment, weights.flatten(1), source.flatten(1), target.flatten(1))
