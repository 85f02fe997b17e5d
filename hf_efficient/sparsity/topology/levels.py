"""Gradients levelled by input, for choosing among weights whose inputs differ in strength."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight

QUIET = 0.01  # smallest level of an input, relative to the layer: noise of quiet inputs is not amplified further


def input_levels(gradient: Tensor, dim: int) -> Tensor:
    """Root mean square of the gradients of each input's weights, relative to that of the whole layer.

    A few inputs are tens of times larger than the others (frequent words; a few channels of a pretrained network), and
    so are the gradients of all their weights. Chosen by raw gradients, most new weights would go to these inputs, where
    their values are nearly redundant.

    Args:
        gradient: dL/dz, (out, ...) or, with dim = 0, (in, out).
        dim: of the inputs, 0 or 1; dimensions after 1 count as part of it.

    Returns:
        One number >= QUIET for each input; ones where the whole gradient is zero.
    """
    square = gradient.flatten(1).square().mean(1 - dim)
    whole = square.mean()
    return torch.where(whole > 0, square / whole, torch.ones_like(square)).sqrt_().clamp_min_(QUIET)


def levels_of(weight: SparseWeight, power: float) -> Tensor:
    """(inputs,) `input_levels` to `power` of a weight whose whole gradient was read; with 0 all are one."""
    assert weight.gradient is not None
    whole, dim = weight.gradient.view(weight.matrix), weight.input_dim
    return input_levels(whole.transpose(0, 1).flatten(1) if dim else whole[0], dim).pow_(power)


def levelled(weight: SparseWeight, levels: Tensor) -> Tensor:
    """(n,) |dL/dz| of a weight whose whole gradient was read, divided by the level of each input, (inputs,)."""
    assert weight.gradient is not None
    by_input = levels.view(weight.matrix[0], -1).unsqueeze(2 - weight.input_dim)
    return (weight.gradient.view(weight.matrix).abs() / by_input).flatten()
