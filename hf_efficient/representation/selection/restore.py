"""RESTORE (Cho et al., ICML 2026, https://arxiv.org/abs/2606.01711): half kept, the rest merged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.maths.mixture import Mixture, mass
from hf_efficient.representation.maths.steps import cosines
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

KEPT = 0.5  # share of the budget that another method keeps


@on_valid_tokens
def generate(features: Tensor, importance: Tensor, k: int, config: Any = None) -> Mixture:
    """`config.kept_by` keeps half of the budget; anchors among the others take in what is most like them, as means.

    Anchors are the rest's largest R_i (1 - max of cos_ij over j with R_j > R_i), R_i the sum of cosines of i to the
    rest: dense places, and of those no two alike. The public code compares with the less dense (R_j < R_i) instead,
    which takes outliers; here it is as the paper has it. A merged token stands at the median of its members, and counts
    as many as they are. The paper's attention also favours what is far off, by log(2 - D(|m - n|)) with D the mean
    cosine of rotary angles, while it reads the prompt; that part is left out here.

    Args:
        features: (B, N, D) float32.
        importance: (B, N) float32, for the method that keeps.
        k: tokens to have.
        config: a `TokenPrunerConfig`.

    Returns:
        The mixture: kept tokens as they are, plain means; the anchor of a group is its lower median.
    """
    batch, n = importance.shape
    keep = int(KEPT * k)
    kept = importance.new_zeros(batch, 0, dtype=torch.long)
    if keep:
        kept = REPRESENTATION.row(config.kept_by).implementation(features, importance, keep, config)
    alike = cosines(features)
    rest = torch.ones_like(importance, dtype=torch.bool).scatter(1, kept, False)
    centers = torch.cat([kept, distinct_anchors(alike, rest, k - keep)], dim=1)
    own = torch.arange(k, device=features.device).expand(batch, -1)
    likeness = alike.gather(1, centers[:, keep:].unsqueeze(-1).expand(-1, -1, n))
    group = (likeness.argmax(1) + keep).scatter(1, centers, own)
    size = mass(group, k).long()
    members = group.sort(dim=1, stable=True).indices  # of one group after the other, rising
    medians = members.gather(1, size.cumsum(1) - size + (size - 1) // 2)
    anchors, order = medians.sort(dim=1)
    return Mixture(anchors, order.argsort(dim=1).gather(1, group), 1 / size.gather(1, group))


def distinct_anchors(alike: Tensor, rest: Tensor, k: int) -> Tensor:
    """k tokens (B, k) long of the rest (B, N) bool that are dense and not alike, of cosines (B, N, N)."""
    density = (alike * rest.unsqueeze(1)).sum(-1)
    denser = (density.unsqueeze(1) > density.unsqueeze(2)) & rest.unsqueeze(1)
    nearest = alike.masked_fill(~denser, -torch.inf).amax(-1)
    worth = density * (1 - nearest.where(denser.any(-1), 0))
    return worth.masked_fill(~rest, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :k]
