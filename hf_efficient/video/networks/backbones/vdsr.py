"""VDSR: bicubic enlargement plus a deep residual (Kim et al., CVPR 2016, arXiv 1511.04587)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .backbone import Backbone, Conv, center, upsample_bicubic


class VDSR(Backbone):
    """bicubic(x) + layers(bicubic(x)), `num_blocks` layers between first and last. Runs at the size of the result."""

    def __init__(self, scale: int, num_features: int, num_blocks: int, expansion: int = 4) -> None:
        super().__init__()
        self.scale = scale
        inner = (Conv(num_features, num_features, 3) for _ in range(num_blocks))
        self.layers = nn.ModuleList([Conv(3, num_features, 3), *inner, Conv(num_features, 3, 3)])

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        x = y = upsample_bicubic(x, self.scale)
        for layer in self.layers[:-1]:
            y = layer(y, trim).relu_()
        y = self.layers[-1](y, trim)
        return y.add_(center(x, y.shape[-2:]))

    @staticmethod
    def receptive_radius(scale: int, num_blocks: int) -> int:
        return 2 + math.ceil((num_blocks + 2) / scale)

    @staticmethod
    def largest_activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features * scale**2
