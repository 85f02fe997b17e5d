"""VisionZip (Yang et al., CVPR 2025, https://arxiv.org/abs/2412.04467): dominant tokens, and merged contextual ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.representation.maths.mixture import Mixture, mass
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

CONTEXTUAL = 10 / 64  # share of the budget that goes to merged tokens


@on_valid_tokens
def generate(features: Tensor, importance: Tensor, k: int, config: Any = None) -> Mixture:
    """The most important stay; of the others, evenly spaced targets take in all that are most like them.

    A contextual token is its target plus the mean of what joins it, as in the public code; the paper speaks of merging
    by averages, which would be shorter. That code compares keys of the encoder, here features are compared, and it
    keeps [CLS] as one token more, which is left out here. Budgets of one are a dominant token.
    """
    batch, n = importance.shape
    contextual = min(max(1, round(CONTEXTUAL * k)), k - 1)
    ranked = importance.sort(dim=1, descending=True, stable=True).indices
    dominant, rest = ranked[:, : k - contextual].sort(dim=1).values, ranked[:, k - contextual :].sort(dim=1).values
    step = max(1, rest.shape[1] // max(1, contextual))
    targets = rest[:, ::step][:, :contextual]
    unit = F.normalize(features, dim=-1)
    goal = unit.gather(1, targets.unsqueeze(-1).expand(-1, -1, unit.shape[-1]))
    anchors, order = torch.cat([dominant, targets], dim=1).sort(dim=1)
    place = order.argsort(dim=1)
    if contextual:
        joins = torch.bmm(unit, goal.transpose(1, 2)).argmax(-1) + k - contextual
    else:
        joins = torch.zeros_like(ranked)
    own = torch.arange(k, device=features.device).expand(batch, -1)
    assignment = place.gather(1, joins.scatter(1, torch.cat([dominant, targets], dim=1), own))
    joined = (mass(assignment, k) - 1).clamp_min(1).gather(1, assignment)
    weights = torch.ones_like(importance).div(joined).scatter(1, anchors, 1.0)
    if not contextual:  # nothing to merge into: what is not kept is dropped
        weights = torch.zeros_like(importance).scatter(1, anchors, 1.0)
    return Mixture(anchors, assignment, weights)
