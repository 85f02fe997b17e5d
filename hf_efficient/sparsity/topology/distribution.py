"""How many weights of each layer are active: uniform, ERK, or the largest of all layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(shapes: Sequence[Sequence[int]], density: float) -> list[int]:
    """The same density in every layer: k_l = round(density * n_l).

    Args:
        shapes: of the layers.
        density: share of active weights, in (0, 1].
    """
    return [math.floor(density * math.prod(shape) + 0.5) for shape in shapes]


def erk(shapes: Sequence[Sequence[int]], density: float) -> list[int]:
    """Erdős-Rényi-Kernel: density_l is proportional to sum(shape_l) / prod(shape_l): small layers are denser.

    Layers that would get more weights than they have are dense, and the others share the rest (Evci et al.,
    Rigging the Lottery, 2020, section 3; Mocanu et al. 2018). The sum of all k_l is round(density * sum n_l), exactly.

    Args:
        shapes: of the layers, e.g. (out, in) or (out, in, height, width).
        density: share of active weights of all layers together, in (0, 1].
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) for shape in shapes]  # n_l * sum(shape_l) / prod(shape_l): counts up to the common factor
    budget = math.floor(density * sum(sizes) + 0.5)
    dense: set[int] = set()
    factor = 0.0
    while len(dense) < len(sizes):
        left = budget - sum(sizes[l] for l in dense)
        factor = left / sum(raw[l] for l in range(len(raw)) if l not in dense)
        over = {l for l in range(len(raw)) if l not in dense and factor * raw[l] >= sizes[l]}
        if not over:
            break
        dense |= over
    exact = [float(sizes[l]) if l in dense else factor * raw[l] for l in range(len(sizes))]
    return _rounded(exact, budget)


def largest(weights: Sequence[Tensor], density: float) -> list[int]:
    """How many of the largest |w| over all layers each layer has; at least one. They sum to round(density * n).

    Args:
        weights: of the layers, any shapes.
        density: share of active weights of all layers together, in (0, 1].
    """
    sizes = [weight.numel() for weight in weights]
    magnitudes = [weight.detach().flatten().float().abs() for weight in weights]
    for magnitude in magnitudes:
        magnitude[magnitude.argmax()] = torch.inf
    best = torch.cat(magnitudes).topk(math.floor(density * sum(sizes) + 0.5)).indices
    layer = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(best.device)[best]
    return [int(count) for count in torch.bincount(layer, minlength=len(sizes))]


def _rounded(exact: Sequence[float], total: int) -> list[int]:
    """`exact` rounded to whole numbers that add up to `total`; the largest remainders round up."""
    counts = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda l: counts[l] - exact[l])
    for l in by_remainder[: total - sum(counts)]:
        counts[l] += 1
    return counts
