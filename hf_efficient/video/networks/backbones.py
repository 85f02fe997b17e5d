"""The networks: plain torch modules, (B, 3, H, W) in [0, 1] to (B, 3, sH, sW), layer by layer as published.

At the published sizes they have exactly the parameters of the papers' code; any width and depth works. None of them
changes its input or clamps its output. What a layer made is changed in place where it can be: for frames, fresh memory
costs more time than the sum or the ReLU that would fill it.

With `trim` no layer pads: the result is smaller on all sides, and what is left of it does not depend on what lies
beyond the input. So is a piece of a frame computed with the context it needs and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_efficient.reading import shown

SCALES = (2, 3, 4)


class Conv(nn.Conv2d):
    """A convolution that keeps height and width, by padding with zeros, unless it is told to trim."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=0 if trim else self.padding)


def centre(x: Tensor, size: Sequence[int]) -> Tensor:
    """The (height, width) in the middle of x: what layers that trim have left of its surroundings."""
    height, width = size
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def upsample_bicubic(x: Tensor, scale: int) -> Tensor:
    """(B, C, H, W) to (B, C, sH, sW) by the bicubic kernel with a = -0.5, as MATLAB's imresize."""
    return F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)


@torch.no_grad()
def set_length(layer: nn.Conv2d, length: float) -> None:
    """Give every output channel's kernel a length, which weight norm calls g, and no bias."""
    layer.weight.mul_(length / layer.weight.flatten(1).norm(dim=1)[:, None, None, None])
    if layer.bias is not None:
        layer.bias.zero_()


class WideBlock(nn.Module):
    """x + project(ReLU(expand(x)))."""

    def __init__(self, num_features: int, expansion: int) -> None:
        super().__init__()
        self.expand = Conv(num_features, num_features * expansion, 3)
        self.project = Conv(num_features * expansion, num_features, 3)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        y = self.project(self.expand(x, trim).relu_(), trim)
        return y.add_(centre(x, y.shape[-2:]))


class WDSR(nn.Module):
    """Wide activation (Yu et al., arXiv 1808.08718): the expert of STDO. Weight norm is added by `weights`."""

    def __init__(self, scale: int, num_features: int, num_blocks: int, expansion: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.head = Conv(3, num_features, 3)
        blocks = [WideBlock(num_features, expansion) for _ in range(num_blocks)]
        self.blocks = nn.Sequential(*blocks)
        self.tail = Conv(num_features, 3 * scale**2, 3)
        self.skip = Conv(3, 3 * scale**2, 5)
        for layer in (self.head, self.tail, self.skip):
            set_length(layer, 1.0)
        for block in blocks:
            set_length(block.expand, 2.0)
            set_length(block.project, num_blocks**-0.5)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        x = x - 0.5
        y = self.head(x, trim)
        for block in self.blocks:
            y = block(y, trim)
        y = self.tail(y, trim)
        return F.pixel_shuffle(y.add_(centre(self.skip(x, trim), y.shape[-2:])), self.scale).add_(0.5)

    @staticmethod
    def radius(scale: int, num_blocks: int) -> int:
        return 2 * num_blocks + 2

    @staticmethod
    def activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features * expansion


class ESPCN(nn.Module):
    """Sub-pixel convolution (Shi et al., CVPR 2016)."""

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
    def radius(scale: int, num_blocks: int) -> int:
        return 3 + num_blocks

    @staticmethod
    def activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features


class SRCNN(nn.Module):
    """Bicubic enlargement, then three layers (Dong et al., arXiv 1501.00092). Runs at the size of the result."""

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
    def radius(scale: int, num_blocks: int) -> int:
        return 2 + math.ceil((4 + 2 * num_blocks + 2) / scale)

    @staticmethod
    def activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features * scale**2


class VDSR(nn.Module):
    """Bicubic enlargement plus a deep residual (Kim et al., CVPR 2016); `num_blocks` layers between first and last."""

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
        return y.add_(centre(x, y.shape[-2:]))

    @staticmethod
    def radius(scale: int, num_blocks: int) -> int:
        return 2 + math.ceil((num_blocks + 2) / scale)

    @staticmethod
    def activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features * scale**2


class PlainBlock(nn.Module):
    """x + second(ReLU(first(x)))."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.first = Conv(num_features, num_features, 3)
        self.second = Conv(num_features, num_features, 3)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        y = self.second(self.first(x, trim).relu_(), trim)
        return y.add_(centre(x, y.shape[-2:]))


class EDSR(nn.Module):
    """Residual blocks without batch norm (Lim et al., CVPR workshops 2017), residual scale 1."""

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
        y = y.add_(centre(x, y.shape[-2:]))
        for layer, factor in zip(self.up, self.factors, strict=True):
            y = F.pixel_shuffle(layer(y, trim), factor)
        return self.tail(y, trim).add_(self.mean)

    @staticmethod
    def radius(scale: int, num_blocks: int) -> int:
        return 2 * num_blocks + (5 if scale == 4 else 4)

    @staticmethod
    def activation(scale: int, num_features: int, expansion: int) -> int:
        return num_features * scale**2


BACKBONES: dict[str, type[WDSR] | type[ESPCN] | type[SRCNN] | type[VDSR] | type[EDSR]] = {
    "wdsr": WDSR,
    "espcn": ESPCN,
    "edsr": EDSR,
    "srcnn": SRCNN,
    "vdsr": VDSR,
}
# (num_features, num_blocks) of the papers' code
PUBLISHED_SIZES = {"wdsr": (32, 16), "espcn": (64, 1), "edsr": (64, 16), "srcnn": (64, 1), "vdsr": (8, 18)}


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that builds one network.

    Args:
        backbone: a key of BACKBONES.
        scale: 2, 3 or 4.
        num_features: width, 1 to 1024.
        num_blocks: depth, 1 to 256: residual blocks of WDSR and EDSR, inner layers of the others.
        expansion: WDSR's width inside a block over its width outside, 1 to 16; the others have none.

    Raises:
        ValueError: a field is out of range.
    """

    backbone: str = "wdsr"
    scale: int = 2
    num_features: int = 16
    num_blocks: int = 2
    expansion: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, str) or self.backbone not in BACKBONES:
            raise ValueError(f"backbone={shown(self.backbone)} is not known; expected one of {', '.join(BACKBONES)}.")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int) or self.scale not in SCALES:
            raise ValueError(f"scale={shown(self.scale)} is not supported; expected 2, 3 or 4.")
        for name, most in (("num_features", 1024), ("num_blocks", 256), ("expansion", 16)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}={shown(value)} is out of range; expected a whole number from 1 to {most}.")

    def build(self) -> nn.Module:
        """A new network, randomly initialised as published, weight norm folded."""
        return BACKBONES[self.backbone](self.scale, self.num_features, self.num_blocks, self.expansion)

    @property
    def radius(self) -> int:
        """Low-resolution pixels around a pixel that its enlargement depends on, on each side."""
        return BACKBONES[self.backbone].radius(self.scale, self.num_blocks)

    @property
    def activation(self) -> int:
        """Numbers that the largest layer makes of one low-resolution pixel."""
        return BACKBONES[self.backbone].activation(self.scale, self.num_features, self.expansion)
