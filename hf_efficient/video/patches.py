"""Frames and tensors, downscaling, and the error of each patch: pure functions on tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import Geometry as Geometry


def to_tensor(rgb: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255


def to_rgb8(x: Tensor) -> np.ndarray:
    """(1, 3, H, W) in [0, 1] to (H, W, 3) uint8, rounded to nearest, C-contiguous."""
    rounded = x[0].permute(1, 2, 0).float().mul(255).add_(0.5).clamp_(0, 255)  # to uint8 it is cut off, as by floor
    return np.ascontiguousarray(rounded.to(torch.uint8).numpy())


def round8(x: Tensor) -> Tensor:
    """[0, 1] to whole numbers in [0, 255], as float."""
    return (x.float() * 255).clamp(0, 255).add(0.5).floor()


def pad_to_grid(frame: Tensor, geometry: Geometry) -> Tensor:
    """(1, 3, H, W) to (1, 3, s·lr_height, s·lr_width): the last pixels are repeated to the right and below."""
    right = geometry.large(geometry.lr_width) - frame.shape[-1]
    bottom = geometry.large(geometry.lr_height) - frame.shape[-2]
    return F.pad(frame, (0, right, 0, bottom), mode="replicate")


def replicate_border(x: Tensor, halo: int) -> Tensor:
    """(B, 3, H, W) to (B, 3, H + 2·halo, W + 2·halo): border pixels are repeated outwards."""
    return F.pad(x, [halo] * 4, mode="replicate")


def degrade(frame: Tensor, geometry: Geometry) -> Tensor:
    """The low-resolution frame: antialiased bicubic in floating point, then rounded, as by MATLAB's imresize.

    Args:
        frame: (1, 3, s·lr_height, s·lr_width) float32 in [0, 1].
        geometry: the grid.

    Returns:
        (1, 3, lr_height, lr_width), multiples of 1/255 in [0, 1].
    """
    size = (geometry.lr_height, geometry.lr_width)
    return round8(F.interpolate(frame, size=size, mode="bicubic", antialias=True)) / 255


def crop(frame: Tensor, starts: np.ndarray, height: int, width: int) -> Tensor:
    """Crop windows out of a frame.

    Args:
        frame: (C, H, W).
        starts: (N, 2) top and left.
        height: of a window.
        width: of a window.

    Returns:
        (N, C, height, width).
    """
    rows = torch.as_tensor(starts[:, 0, None] + np.arange(height))  # (N, height)
    columns = torch.as_tensor(starts[:, 1, None] + np.arange(width))
    return frame[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def squared_errors(output: Tensor, target: Tensor, border: int = 0) -> Tensor:
    """Mean squared error of each of several images after rounding to 8 bits; white is 1.

    Args:
        output: (N, 3, H, W) in [0, 1].
        target: the true images, of the same shape.
        border: pixels to leave out on each side; images too small for that keep their center.

    Returns:
        (N,) float32.
    """
    y, x = (min(border, (side - 1) // 2) for side in output.shape[-2:])
    inside = (..., slice(y, output.shape[-2] - y), slice(x, output.shape[-1] - x))
    return ((round8(output) - round8(target))[inside] / 255).square().mean((1, 2, 3))


def patch_errors(enlarged: Tensor, hr: Tensor, geometry: Geometry, border: int = 0) -> Tensor:
    """The error of an enlargement on every patch of a frame.

    A general model f0 is scored without a border: it has seen what surrounds the patches, and its errors at the border
    of the frame are to be learned as well. The paper's metric leaves out s + 4 pixels.

    Args:
        enlarged: (1, 3, s·lr_height, s·lr_width), the enlarged frame.
        hr: the true frame, padded to the grid.
        geometry: the grid.
        border: pixels to leave out on each side of every patch.

    Returns:
        (I·J,) mean squared errors, see `squared_errors`.
    """
    starts, height, width = geometry.windows()
    corners, size = (starts * geometry.scale).astype(int), (geometry.large(height), geometry.large(width))
    ours, theirs = (crop(x[0], corners, *size) for x in (enlarged, hr))
    return squared_errors(ours, theirs, border)


def psnr(error: float) -> float:
    """dB of a mean squared error where white is 1; infinite for 0."""
    return math.inf if error <= 0 else -10 * math.log10(error)
