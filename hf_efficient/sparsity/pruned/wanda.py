"""Wanda (Sun et al., ICLR 2024, arXiv 2306.11695): weights times the norm of their input, compared in each row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .calibration import check_amount, layers_to_prune, prune_by_inputs
from .weights import Names


def wanda_scores(weight: Tensor, mean_squares: Tensor) -> Tensor:
    """S_ij = |W_ij| * ||X_j||_2, up to a factor that is the same for a layer.

    Args:
        weight: W, (outputs, inputs).
        mean_squares: mean over tokens of each input's square, (inputs,) float32.

    Returns:
        (outputs, inputs) float32.
    """
    return weight.float().abs() * mean_squares.sqrt()


def prune_wanda(
    model: nn.Module,
    batches: Iterable[Any],
    sparsity: float | None = None,
    *,
    pattern: str | None = None,
    target_modules: Names = None,
    exclude_modules: Names = None,
) -> None:
    """Prune a model by Wanda, in place: the smallest |w| times norm of input of each output row become zero.

    One pass over the batches; unlike the authors' code, which goes block by block, the inputs are those of the model
    before pruning. Fine-tune it then with `keep_sparsity`, or with `BiDSTConfig(distribution="as_pruned")`.

    Args:
        model: a plain one, not quantized.
        batches: calibration data: mappings, tuples or tensors that the model is called with. The paper takes 128 texts
            of 2,048 tokens.
        sparsity: share of zeros in each row, rounded down to whole weights; default 0.5.
        pattern: "N:M", e.g. "2:4": N of every M neighbouring inputs are kept; then leave sparsity out.
        target_modules: names as for `keep_sparsity`; None: linear layers and Conv1D but heads and embeddings.
        exclude_modules: names to leave out.

    Raises:
        TypeError: `model` is no model.
        ValueError: a setting is out of range, a layer cannot be pruned, or the batches are none or do not reach it.
    """
    share, groups = check_amount(sparsity, pattern)
    layers = layers_to_prune(model, target_modules, exclude_modules, groups)

    def prune(weight: Tensor, mean_squares: Tensor) -> None:
        scores = wanda_scores(weight, mean_squares)
        inputs = scores.shape[1]
        zeros, of = (int(share * inputs), inputs) if groups is None else (groups.of - groups.kept, groups.of)
        compared = scores.reshape(len(scores), -1, of)
        lowest = compared.topk(zeros, dim=2, largest=False).indices
        mask = torch.zeros_like(compared, dtype=torch.bool).scatter_(2, lowest, True)
        weight.masked_fill_(mask.view(scores.shape), 0.0)

    prune_by_inputs(model, batches, layers, lambda x: x.square().sum(0), prune, largest=2**28)
