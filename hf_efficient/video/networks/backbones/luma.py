"""Networks that see and correct luma alone: chroma is enlarged by the bicubic filter.

The eye and the codec keep little detail of chroma, and on small streams a network that also corrects chroma made it
worse. So with y the luma of x, the result is bicubic(x) + r(y): the same correction r for red, green and blue, which
leaves the chroma of every YUV matrix as it is.

At x1.5 a block of 2 x 2 pixels becomes one of 3 x 3: the first layers step by two pixels, the others compute on blocks.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_efficient.video.networks.spec import sub_pixels

from .backbone import Backbone, Conv, center, set_length
from .wdsr import bicubic_filters, wide_activation, wide_blocks

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, BT.601


class LumaFilter(Backbone):
    """bicubic(x) + shuffle(skip(y)): one 5 x 5 filter (10 x 10 at x1.5) for each position. It has no width or depth."""

    on_luma = True
    starts_at_zero = True

    def __init__(self, scale: float, num_features: int = 1, num_blocks: int = 1, expansion: int = 4) -> None:
        super().__init__()
        self.scale, (self.block, self.out) = scale, sub_pixels(scale)
        self.skip = Conv(1, self.out**2, 5 * self.block, self.block)
        nn.init.zeros_(self.skip.weight)
        nn.init.zeros_(self.skip.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        enlarged, y = bicubic(x, self.scale, trim), luma(x) - 0.5
        correction = F.pixel_shuffle(self.correct(y, trim), self.out)
        return center(enlarged, correction.shape[-2:]) + correction

    def correct(self, y: Tensor, trim: bool) -> Tensor:
        """(B, 1, H, W) of luma - 1/2 to (B, s², H, W) of correction; at x1.5 (B, 9, H/2, W/2)."""
        return self.skip(y, trim)

    @staticmethod
    def receptive_radius(scale: float, num_blocks: int) -> int:
        return 2 * sub_pixels(scale)[0]

    @staticmethod
    def largest_activation(scale: float, num_features: int, expansion: int) -> int:
        return math.ceil(3 * scale**2)


class LumaWDSR(LumaFilter):
    """bicubic(x) + shuffle(skip(y) + tail(blocks(head(y)))): WDSR on luma, see `wdsr.py`."""

    weight_norm = True
    starts_at_zero = False

    def __init__(self, scale: float, num_features: int, num_blocks: int, expansion: int = 4) -> None:
        super().__init__(scale)
        nn.init.normal_(self.skip.weight)  # weight norm needs a direction
        self.head = Conv(1, num_features, 3 * self.block, self.block)
        self.blocks = wide_blocks(num_features, num_blocks, expansion)
        self.tail = Conv(num_features, self.out**2, 3)
        set_length(self.skip, 0.01)
        set_length(self.head, 1.0)
        set_length(self.tail, 0.1)

    def correct(self, y: Tensor, trim: bool) -> Tensor:
        return wide_activation(self, y, trim)

    @staticmethod
    def receptive_radius(scale: float, num_blocks: int) -> int:
        return (2 * num_blocks + 2) * sub_pixels(scale)[0]

    @staticmethod
    def largest_activation(scale: float, num_features: int, expansion: int) -> int:
        return max(1, num_features * expansion // sub_pixels(scale)[0] ** 2)


def luma(x: Tensor) -> Tensor:
    """(B, 3, H, W) to its luma, (B, 1, H, W)."""
    red, green, blue = x.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def luma_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of the luma of two images, (B, 3, H, W) each."""
    return (luma(x) - luma(y)).square().mean()


def bicubic(x: Tensor, scale: float, trim: bool = False) -> Tensor:
    """(B, 3, H, W) to (B, 3, sH, sW) by the bicubic filter, as a convolution; beyond the border lies 0.5."""
    block, out = sub_pixels(scale)
    filters = _filters(scale, x.dtype, x.device)
    y = F.conv2d(x - 0.5, filters, stride=block, padding=0 if trim else 2, groups=3)
    return F.pixel_shuffle(y, out) + 0.5


@cache
def _filters(scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(3s², 1, 5, 5), at x1.5 (27, 1, 6, 6): the filters of every sub-pixel position, for three colors."""
    return bicubic_filters(scale).repeat(3, 1, 1)[:, None].to(device, dtype)
