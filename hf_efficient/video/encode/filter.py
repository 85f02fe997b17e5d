"""The 5 x 5 luma filter by least squares: no training, a hundred numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.video.networks.backbones.backbone import center
from hf_efficient.video.networks.backbones.luma import LumaFilter, bicubic, luma
from hf_efficient.video.networks.spec import NetworkSpec, sub_pixels
from hf_efficient.video.patches import replicate_border

from .patch_store import Pair

RIDGE = 1e-6  # of the mean square, so that a flat video has a solution


def normal_equations(pairs: Iterable[Pair], scale: float) -> tuple[Tensor, Tensor]:
    """A = Σ u u', B = Σ u v' over all pixels of luma y.

    Args:
        pairs: frames of the stream and the source.
        scale: s.

    Returns:
        A (26, 26) and B (26, s²) in float64: u is the 5 x 5 neighborhood of y - 1/2 and a 1, v what bicubic enlargement
        leaves to be corrected at the s² positions. At x1.5 A (101, 101) and B (101, 9), of blocks of 2 x 2 pixels.
    """
    block, out = sub_pixels(scale)
    count = (5 * block) ** 2 + 1
    a, b = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, out**2, dtype=torch.float64)
    for lr, hr in pairs:
        padded = replicate_border(lr, 2 * block)
        u = F.unfold(luma(padded) - 0.5, 5 * block, stride=block)[0].double()
        u = torch.cat([u, torch.ones_like(u[:1])])
        enlarged = center(bicubic(padded, scale, trim=True), hr.shape[-2:])
        v = F.pixel_unshuffle(luma(hr) - luma(enlarged), out)[0].flatten(1).double()
        a, b = a + u @ u.T, b + u @ v.T
    return a, b


def fit_filter(pairs: Iterable[Pair], scale: float) -> LumaFilter:
    """The filter with the least squared error of luma on these frames."""
    a, b = normal_equations(pairs, scale)
    ridge = RIDGE * a.diagonal().mean() * torch.eye(len(a), dtype=torch.float64)
    solution = torch.linalg.solve(a + ridge, b).float().T
    net = NetworkSpec("luma_filter", scale, 1, 1).build()
    assert isinstance(net, LumaFilter)
    net.load_state_dict({"skip.weight": solution[:, :-1].reshape(net.skip.weight.shape), "skip.bias": solution[:, -1]})
    return net.eval().requires_grad_(False)


def filter_levels(net: LumaFilter, weight_step: float, bias_step: float) -> list[Tensor]:
    """Weights and biases in whole steps, rounded to nearest."""
    assert net.skip.bias is not None
    return [(net.skip.weight / weight_step).round(), (net.skip.bias / bias_step).round()]
