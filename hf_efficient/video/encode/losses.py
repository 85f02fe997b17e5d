"""What a delta is trained for (`FitSettings.loss`): squared or absolute error of luma, or structure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.video.networks.backbones.luma import bicubic, luma, luma_error

from .overfit import Patches, on_patches

Loss = Callable[[Tensor, Tensor], Tensor]
WINDOW, DEVIATION, STRUCTURE_SHARE = 11, 1.5, 0.84  # of SSIM as published; of structure in the sum
PROBED = 64  # patches on which the loss of bicubic enlargement is taken


def luma_l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error of the luma of two batches of images, (B, 3, H, W) each."""
    return (luma(x) - luma(y)).abs().mean()


def structure(x: Tensor, y: Tensor) -> Tensor:
    """0.84 (1 - SSIM) + 0.16 |error| of the luma of two batches of images.

    After Zhao et al., "Loss Functions for Image Restoration with Neural Networks", IEEE TCI 2017, at one scale; SSIM
    as in `measure/evaluation.py`.

    Args:
        x: (B, 3, H, W), white is 1.
        y: the same size.
    """
    a, b = luma(x), luma(y)
    side = min(WINDOW, *a.shape[-2:])
    line = torch.exp(-((torch.arange(side) - (side - 1) / 2) ** 2) / (2 * DEVIATION**2))
    line = (line / line.sum()).to(a)

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return STRUCTURE_SHARE * (1 - similarity.mean()) + (1 - STRUCTURE_SHARE) * (a - b).abs().mean()


LOSSES: dict[str, Loss] = {"mse": luma_error, "l1": luma_l1, "perceptual": structure}


@torch.no_grad()
def loss_of_bicubic(loss: Loss, store: Patches, scale: float, trim: bool) -> float:
    """A loss of bicubic enlargement, on patches of a store that are spaced evenly."""
    chosen = np.unique(np.linspace(0, len(store) - 1, min(PROBED, len(store))).round().astype(int))
    lr, hr = store.batch(chosen)
    return float(loss(on_patches(_Bicubic(scale), lr, hr, trim), hr))


class _Bicubic(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        return bicubic(x, self.scale, trim)
