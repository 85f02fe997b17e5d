"""SRCNN: bicubic enlargement, then three layers (Dong et al., arXiv 1501.00092)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .backbone import Backbone, Conv, upsample_bicubic


class SRCNN(Backbone):
    """layers(bicubic(x)), `num_blocks` layers between first and last. Runs at the size of the result."""

    def __init__(self, scale: int, num_features: int, num_blocks: int, expansion: int = 4) -> None:
        super().__init__()
        self.scale = scale
        narrow = max(1, num_features // 2)
        between = [Conv(num_features, narrow, 5), *(Conv(narrow, narrow, 5) for _ in range(num_blocks - 1))]
        self.layers = nn.ModuleList([Conv(3, num_features, 9), *between, Conv(narrow, 3, 5)])

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        x = upsample_bicubic(x, self.scale)
        for layer in self.layers[:-1]:
            x = layer(x, trim).relu_()
        return self.layers[-1](x, trim)

    @staticmethod
    def receptive_radius(scale: int, num_blocks: int) -> int:
        return 2 + math.ceil((4 + 2 * num_blocks + 2) / scale)

    @staticmethod
    def largest_activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features * scale**2
