"""Column subset selection (as in SPARE, 2026, https://arxiv.org/abs/2606.18681): the tokens that span the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.maths.steps import row_of, take_best
from hf_efficient.representation.maths.valid_tokens import on_valid_tokens

BLOCK = 16  # steps from one look at all residuals to the next
LEAST = 1e-3  # of the longest token: residuals below are taken for rounding


@on_valid_tokens
def select(features: Tensor, importance: Tensor, k: int, config: Any = None, quota: Quota | None = None) -> Tensor:
    """Next token: the longest residual after projecting on what is taken (Gram-Schmidt with pivoting).

    The paper also multiplies by how little a token has to do with the question ("anti-relevance"); that part is left
    out here, and importance plays no part. Known from its abstract and third-party notes. Residuals r are projected
    once per block of steps, their lengths in every step: |r|² falls by <r, q>² for the direction q of what is taken.

    Returns:
        (B, k) long, in the order taken, beyond the rank of the features by position. O(k·N·D).
    """
    rest = features
    least = LEAST * torch.linalg.vector_norm(rest, dim=-1).amax(1, keepdim=True)
    order = torch.zeros(len(features), k, dtype=torch.long, device=features.device)
    basis = features.new_zeros(len(features), BLOCK, features.shape[-1])  # orthonormal, of what the block takes
    for step in range(k):
        if step % BLOCK == 0:
            rest = torch.baddbmm(rest, torch.bmm(rest, basis.transpose(1, 2)), basis, alpha=-1)
            square = torch.linalg.vector_norm(rest, dim=-1).square()
            basis.zero_()
        length = square.clamp_min(0).sqrt()
        chosen = take_best(torch.where(length > least, length, 0), order, step, quota)
        token = row_of(rest, chosen).unsqueeze(1)
        token = torch.baddbmm(token, torch.bmm(token, basis.transpose(1, 2)), basis, alpha=-1)
        held = torch.linalg.vector_norm(token, dim=2, keepdim=True)
        token = token / held.clamp_min(1e-30) * (length.gather(1, chosen) > least).unsqueeze(-1)
        basis[:, step % BLOCK] = token.squeeze(1)
        square = square - torch.bmm(rest, token.transpose(1, 2)).squeeze(2).square()
    return order
