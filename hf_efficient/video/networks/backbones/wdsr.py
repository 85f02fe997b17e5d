"""WDSR: wide activation (Yu et al., arXiv 1808.08718), the network of the STDO paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_efficient.video.networks.spec import sub_pixels

from .backbone import Backbone, Conv, center, set_length


class WDSR(Backbone):
    """skip(x) + tail(blocks(head(x))), sub-pixel shuffle; `num_blocks` wide blocks."""

    weight_norm = True

    def __init__(self, scale: int, num_features: int, num_blocks: int, expansion: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.head = Conv(3, num_features, 3)
        self.blocks = wide_blocks(num_features, num_blocks, expansion)
        self.tail = Conv(num_features, 3 * scale**2, 3)
        self.skip = Conv(3, 3 * scale**2, 5)
        for layer in (self.head, self.tail, self.skip):
            set_length(layer, 1.0)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        return F.pixel_shuffle(wide_activation(self, x - 0.5, trim), self.scale).add_(0.5)

    @torch.no_grad()
    def start_from_bicubic(self) -> None:
        """The skip layer gets the bicubic weights, and the tail a tenth of its initial ones.

        The 5x5 skip spans the four taps of every sub-pixel position, so its result is exact away from the frame's
        border. Ours, not the paper's: a short training does not have to learn it.
        """
        filters = bicubic_filters(self.scale)
        weight = torch.einsum("ck,nhw->cnkhw", torch.eye(3), filters).reshape(-1, 3, 5, 5)
        self.skip.weight.copy_(weight)
        self.tail.weight.mul_(0.1)

    @staticmethod
    def receptive_radius(scale: int, num_blocks: int) -> int:
        return 2 * num_blocks + 2

    @staticmethod
    def largest_activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features * expansion


class WideBlock(nn.Module):
    """x + project(ReLU(expand(x)))."""

    def __init__(self, num_features: int, expansion: int) -> None:
        super().__init__()
        self.expand = Conv(num_features, num_features * expansion, 3)
        self.project = Conv(num_features * expansion, num_features, 3)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        y = self.project(self.expand(x, trim).relu_(), trim)
        return y.add_(center(x, y.shape[-2:]))


def wide_blocks(num_features: int, num_blocks: int, expansion: int) -> nn.Sequential:
    """The blocks, their weights of the lengths with which training begins."""
    blocks = [WideBlock(num_features, expansion) for _ in range(num_blocks)]
    for block in blocks:
        set_length(block.expand, 2.0)
        set_length(block.project, num_blocks**-0.5)
    return nn.Sequential(*blocks)


def wide_activation(net: Any, x: Tensor, trim: bool) -> Tensor:
    """skip(x) + tail(blocks(head(x))), before the shuffle, of a network that has these layers."""
    y = net.head(x, trim)
    for block in net.blocks:
        y = block(y, trim)
    y = net.tail(y, trim)
    return y.add_(center(net.skip(x, trim), y.shape[-2:]))


def bicubic_filters(scale: float) -> Tensor:
    """(s², 5, 5): the bicubic filter of every sub-pixel position, row by row; a = -0.5, as MATLAB's imresize.

    At x1.5 (9, 6, 6): of the 3 x 3 positions of a block of 2 x 2 pixels.
    """
    block, out = sub_pixels(scale)
    positions = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = cubic(torch.arange(-2, 2 + block, dtype=torch.float64)[None] - positions[:, None])  # (s, 5)
    side = 4 + block
    return (taps[:, None, :, None] * taps[None, :, None, :]).reshape(out**2, side, side).float()


def cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution (1981), support [-2, 2]."""
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
