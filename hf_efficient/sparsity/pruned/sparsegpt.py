"""SparseGPT (Frantar and Alistarh, ICML 2023, arXiv 2301.00774): one-shot pruning with an update of what is left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient.checks import check_number, check_whole
from hf_efficient.sparsity.pattern import NMPattern

from .calibration import check_amount, layers_to_prune, prune_by_inputs
from .weights import Names

HESSIANS = 2**28  # numbers of Hessians in memory at a time: 1 GiB


def obs_scores(w: Tensor, diagonal: Tensor) -> Tensor:
    """w_ij^2 / [H^-1]_jj, what pruning an entry costs: w is (outputs, columns), with the factor's diagonal."""
    return w.square() / diagonal.square()


def prune_layer(
    weight: Tensor,
    hessian: Tensor,
    share: float,
    pattern: NMPattern | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> Tensor:
    """The pruned and updated weight of a layer (Algorithm 1).

    Columns are fixed from left to right. Where entry (i, j) is pruned, the entries right of it in its row take the
    optimal update, -w_ij / [H^-1]_jj * [H^-1]_j,right, H being the Hessian of the columns from j on; its rows come from
    the Cholesky factor of the inverse of the whole. Entries are chosen by w_ij^2 / [H^-1]_jj, each block of columns at
    once.

    Args:
        weight: W, (outputs, inputs).
        hessian: mean of x x^T over tokens, (inputs, inputs) float32.
        share: of zeros in each block of columns.
        pattern: N of every M neighbouring inputs are kept, chosen when the first of them is reached.
        damping: added to the diagonal of the Hessian, as a multiple of its mean.
        block: columns for which entries are chosen together, all rows compared; a multiple of M with a pattern.

    Returns:
        (outputs, inputs) float32.
    """
    w, h = weight.float().clone(), hessian.clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0
    w[:, dead] = 0.0
    h.diagonal().add_(damping * h.diagonal().mean())
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    diagonal = factor.diagonal()
    columns = w.shape[1]
    for start in range(0, columns, block):
        end = min(start + block, columns)
        score = obs_scores(w[:, start:end], diagonal[start:end])
        mask = torch.zeros(score.shape, dtype=torch.bool, device=score.device)  # in order, for W^T too
        if pattern is None:
            mask.view(-1)[score.flatten().topk(int(share * score.numel()), largest=False).indices] = True
        errors = torch.zeros_like(score)
        for j in range(start, end):
            if pattern is not None and j % pattern.of == 0:
                group = slice(j, j + pattern.of)
                score = obs_scores(w[:, group], diagonal[group])
                lowest = score.topk(pattern.of - pattern.kept, dim=1, largest=False).indices
                mask.scatter_(1, lowest + j - start, True)
            error = torch.where(mask[:, j - start], w[:, j], 0.0) / diagonal[j]
            w[:, j:end] -= error[:, None] * factor[j, j:end]
            errors[:, j - start] = error
        w[:, end:] -= errors @ factor[start:end, end:]
        w[:, start:end].masked_fill_(mask, 0.0)
    return w


def prune_sparsegpt(
    model: nn.Module,
    batches: Iterable[Any],
    sparsity: float | None = None,
    *,
    pattern: str | None = None,
    damping: float = 0.01,
    block: int = 128,
    target_modules: Names = None,
    exclude_modules: Names = None,
) -> None:
    """Prune a model by SparseGPT, in place: what is left is updated so that the outputs of each layer change least.

    Layers are pruned in the order of the model, as many in one pass over the batches as have Hessians of 1 GiB
    together; the authors' code takes one block of the model at a time. Fine-tune it then with `keep_sparsity`.

    Args:
        model: a plain one, not quantized.
        batches: calibration data: mappings, tuples or tensors that the model is called with. Gone through several
            times. The paper takes 128 texts of 2,048 tokens.
        sparsity: share of zeros in each layer; default 0.5.
        pattern: "N:M", e.g. "2:4": N of every M neighbouring inputs are kept; then leave sparsity out.
        damping: see `prune_layer`, > 0.
        block: see `prune_layer`, >= 1.
        target_modules: names as for `keep_sparsity`; None: linear layers and Conv1D but heads and embeddings.
        exclude_modules: names to leave out.

    Raises:
        TypeError: `model` is no model.
        ValueError: a setting is out of range, a layer cannot be pruned, or the batches are none or do not reach it.
    """
    share, groups = check_amount(sparsity, pattern)
    check_number("damping", damping, 0, float("inf"), "a number > 0, e.g. 0.01", above=True)
    check_whole("block", block, 1)
    if groups is not None and block % groups.of:
        raise ValueError(f"block={block} is out of range; expected a multiple of {groups.of} with pattern={pattern!r}.")
    layers = layers_to_prune(model, target_modules, exclude_modules, groups)

    def prune(weight: Tensor, hessian: Tensor) -> None:
        weight.copy_(prune_layer(weight, hessian, share, groups, damping, block))

    prune_by_inputs(model, batches, layers, lambda x: x.T @ x, prune, HESSIANS)
