"""The 5 x 5 luma filter by least squares: no training, a hundred numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.video.networks.backbones.luma import LumaFilter, bicubic, luma
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.patches import replicate_border

from .patch_store import Pair

RIDGE = 1e-6  # of the mean square, so that a flat video has a solution


def normal_equations(pairs: Iterable[Pair], scale: int) -> tuple[Tensor, Tensor]:
    """A = Σ u u', B = Σ u v' over all pixels of luma y.

    Args:
        pairs: frames of the stream and the source.
        scale: s.

    Returns:
        A (26, 26) and B (26, s²) in float64: u is the 5 x 5 neighborhood of y - 1/2 and a 1, v what bicubic enlargement
        leaves to be corrected at the s² positions.
    """
    a, b = torch.zeros(26, 26, dtype=torch.float64), torch.zeros(26, scale**2, dtype=torch.float64)
    for lr, hr in pairs:
        padded = replicate_border(lr, 2)
        u = F.unfold(luma(padded) - 0.5, 5)[0].double()
        u = torch.cat([u, torch.ones_like(u[:1])])
        v = F.pixel_unshuffle(luma(hr) - luma(bicubic(padded, scale, trim=True)), scale)[0].flatten(1).double()
        a, b = a + u @ u.T, b + u @ v.T
    return a, b


def fit_filter(pairs: Iterable[Pair], scale: int) -> LumaFilter:
    """The filter with the least squared error of luma on these frames."""
    a, b = normal_equations(pairs, scale)
    solution = torch.linalg.solve(a + RIDGE * a.diagonal().mean() * torch.eye(26, dtype=torch.float64), b).float().T
    net = NetworkSpec("luma_filter", scale, 1, 1).build()
    assert isinstance(net, LumaFilter)
    net.load_state_dict({"skip.weight": solution[:, :25].reshape(-1, 1, 5, 5), "skip.bias": solution[:, 25]})
    return net.eval().requires_grad_(False)


def filter_levels(net: LumaFilter, weight_step: float, bias_step: float) -> list[Tensor]:
    """Weights and biases in whole steps, rounded to nearest."""
    assert net.skip.bias is not None
    return [(net.skip.weight / weight_step).round(), (net.skip.bias / bias_step).round()]
