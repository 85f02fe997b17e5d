"""What every backbone is, and the layers that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Backbone(nn.Module):
    """A network that enlarges (B, 3, H, W) in [0, 1] to (B, 3, sH, sW).

    It is built from `scale`, `num_features`, `num_blocks` and `expansion`, in this order. It neither changes its input
    nor clamps its output. What a layer made is changed in place where it can be: for frames, fresh memory costs more
    time than the sum or the ReLU that would fill it.

    `forward(x, trim=True)` pads in no layer: the result is smaller on all sides, and what is left of it does not depend
    on what lies beyond the input. So a part of a frame is computed with the context it needs and no more.

    Attributes:
        weight_norm: whether it trains with weight norm (Salimans & Kingma, 2016).
        on_luma: whether it corrects luma alone; then a scale of 1.5 is known to it.
        starts_at_zero: whether a new one enlarges as the bicubic filter does, and nothing in it is random.
    """

    weight_norm = False
    on_luma = False
    starts_at_zero = False

    def start_from_bicubic(self) -> None:
        """Before training, make it enlarge as the bicubic filter does. Backbones that have no such start do nothing."""

    @staticmethod
    def receptive_radius(scale: Any, num_blocks: int) -> int:
        """Low-resolution pixels around a pixel that its enlargement depends on, on each side."""
        raise NotImplementedError

    @staticmethod
    def largest_activation(scale: Any, num_features: int, expansion: int) -> int:
        """Numbers that the widest layer makes of one low-resolution pixel."""
        raise NotImplementedError


class Conv(nn.Conv2d):
    """A convolution that keeps height and width by padding with zeros; with `trim` it does not pad.

    Args:
        inputs: channels.
        outputs: channels.
        size: of a filter.
        stride: height and width are divided by it; they and `size` are multiples of it, or it is 1.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, padding=(size - stride) // 2)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, padding=0 if trim else self.padding)


def center(x: Tensor, size: Sequence[int]) -> Tensor:
    """The (height, width) in the middle of x: the part that trimming layers leave."""
    height, width = size
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def upsample_bicubic(x: Tensor, scale: float) -> Tensor:
    """(B, C, H, W) to (B, C, sH, sW) by the bicubic filter with a = -0.5, as MATLAB's imresize."""
    return F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)


@torch.no_grad()
def set_length(layer: nn.Conv2d, length: float) -> None:
    """Give every output channel's weights the same length, which weight norm calls g, and set the bias to zero."""
    layer.weight.mul_(length / layer.weight.flatten(1).norm(dim=1)[:, None, None, None])
    if layer.bias is not None:
        layer.bias.zero_()
