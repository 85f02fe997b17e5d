"""ID-Pruner's coverage turned round: the tokens that cover least."""

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.importance import coverage_weights, shares
from hf_efficient.representation.maths.kernel import TokenKernel
from hf_efficient.representation.selection import Covered


def choose(
    features: Tensor, importance: Tensor, k: int, config: Any, *, valid: Tensor | None = None, **_: Any
) -> Covered:
    """The k tokens with the smallest sum_i pi_i k_ij; arguments as of `id_pruner.choose`, groups are ignored."""
    mix, power = config.coverage_weights_of(k)
    pi = coverage_weights(shares(importance, valid), mix, power, valid)
    covers = TokenKernel(features, config.kernel, valid).weighted(pi).sum(2)
    covers = covers if valid is None else covers.masked_fill(~valid, torch.inf)
    return Covered(covers.sort(dim=1, stable=True).indices[:, :k], None)
