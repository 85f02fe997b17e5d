"""ASAM (Kwon et al., ICML 2021, arXiv 2102.11600): SAM whose distances are in units of each weight's size."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_efficient.optimization.engine.perturbation import Direction, global_norm

from .sam import SAMVariant


@torch.no_grad()
def asam_scaling(g: Direction, w: Direction) -> tuple[dict[Tensor, Tensor], float]:
    """T_w² g and ‖T_w g‖₂ with T_w = diag(|w|): ε = ρ T_w² g / ‖T_w g‖₂ (Eq. 8, η = 0).

    A function rescaled layer by layer keeps its sharpness. `adaptive=True` uses it with any other method's g.

    Args:
        g: direction, packed.
        w: the weights, packed alike.

    Returns:
        The direction of ε, and the norm that it is divided by.
    """
    size = {p: w[p].abs() for p in g}
    scaled = {p: size[p] * d for p, d in g.items()}
    return {p: size[p] * d for p, d in scaled.items()}, global_norm(scaled)


class ASAMVariant(SAMVariant):
    """SAM with distances scaled by `asam_scaling`: as many passes, and a ρ about ten times as large."""

    adaptive = True
