"""EDSR: residual blocks without batch norm (Lim et al., CVPR workshops 2017, arXiv 1707.02921)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone, Conv, center


class EDSR(Backbone):
    """head, `num_blocks` residual blocks with a long skip, sub-pixel enlargement, tail; residual scale 1."""

    mean: Tensor

    def __init__(self, scale: int, num_features: int, num_blocks: int, expansion: int = 4) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None])
        f = num_features
        self.head = Conv(3, f, 3)
        self.blocks = nn.Sequential(*(PlainBlock(f) for _ in range(num_blocks)))
        self.body = Conv(f, f, 3)
        self.factors = (2, 2) if scale == 4 else (scale,)
        self.up = nn.ModuleList(Conv(f, f * factor**2, 3) for factor in self.factors)
        self.tail = Conv(f, 3, 3)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        x = y = self.head(x - self.mean, trim)
        for block in self.blocks:
            y = block(y, trim)
        y = self.body(y, trim)
        y = y.add_(center(x, y.shape[-2:]))
        for layer, factor in zip(self.up, self.factors, strict=True):
            y = F.pixel_shuffle(layer(y, trim), factor)
        return self.tail(y, trim).add_(self.mean)

    @staticmethod
    def receptive_radius(scale: int, num_blocks: int) -> int:
        return 2 * num_blocks + (5 if scale == 4 else 4)

    @staticmethod
    def largest_activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features * scale**2


class PlainBlock(nn.Module):
    """x + second(ReLU(first(x)))."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.first = Conv(num_features, num_features, 3)
        self.second = Conv(num_features, num_features, 3)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        y = self.second(self.first(x, trim).relu_(), trim)
        return y.add_(center(x, y.shape[-2:]))
