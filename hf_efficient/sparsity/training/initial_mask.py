"""The initial mask chosen by gradients: SNIP and |dL/dw|."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.topology.base import by_part


def scores(gradient: Tensor, base: Tensor | None) -> Tensor:
    """|w dL/dw| (SNIP: Lee et al., ICLR 2019, arXiv 1810.02340), or |dL/dw| without a base weight.

    Args:
        gradient: (n,) float32, summed over the first batches.
        base: the n dense weights, any shape; None for |dL/dw|.
    """
    return gradient.abs() if base is None else gradient.abs() * base.detach().flatten().float().abs()


def chosen(weights: Sequence[SparseWeight], of_layers: Sequence[Tensor]) -> list[Tensor]:
    """Indices of the first active weights: the largest scores of all layers together, or of each group of a pattern.

    Args:
        weights: of the layers that share a budget.
        of_layers: scores of each layer, (n_l,).

    Returns:
        (k_l,) int64 for each layer, rising.
    """
    groups = [weight.groups for weight in weights if weight.groups is not None]
    if groups:
        return [each.best(score) for each, score in zip(groups, of_layers, strict=True)]
    return largest_scores(of_layers, sum(len(weight.indices) for weight in weights))


def largest_scores(of_layers: Sequence[Tensor], count: int) -> list[Tensor]:
    """Indices of the `count` largest scores of all layers together, at least one for each layer.

    Args:
        of_layers: scores of each layer, (n_l,).
        count: active weights of all layers together.

    Returns:
        (k_l,) int64 for each layer, rising.
    """
    for score in of_layers:
        score[score.argmax()] = torch.inf
    best = torch.cat(list(of_layers)).topk(count).indices.sort().values
    return by_part(best, [len(score) for score in of_layers])
