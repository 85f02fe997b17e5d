"""ESPCN: sub-pixel convolution (Shi et al., CVPR 2016, arXiv 1609.05158)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone, Conv


class ESPCN(Backbone):
    """Layers with ReLU at low resolution, `num_blocks` of full width between first and last, then sub-pixel shuffle."""

    def __init__(self, scale: int, num_features: int, num_blocks: int, expansion: int = 4) -> None:
        super().__init__()
        self.scale = scale
        narrow = max(1, num_features // 2)
        layers = [
            Conv(3, num_features, 3),
            *(Conv(num_features, num_features, 3) for _ in range(num_blocks)),
            Conv(num_features, narrow, 3),
            Conv(narrow, 3 * scale**2, 3),
        ]
        for layer in layers:
            nn.init.orthogonal_(layer.weight, 1.0 if layer is layers[-1] else nn.init.calculate_gain("relu"))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x, trim).relu_()
        return F.pixel_shuffle(self.layers[-1](x, trim), self.scale)

    @staticmethod
    def receptive_radius(scale: int, num_blocks: int) -> int:
        return 3 + num_blocks

    @staticmethod
    def largest_activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features
