"""Enlarge a whole frame by several networks, without seams: each patch is run with its full receptive field.

Up to float rounding, the result is that of running each network on the whole frame, with replicated border pixels, and
taking every patch from the network that the map names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hf_efficient.video.patches import replicate_border
from hf_efficient.video.tiles import boxes

from .backbones.backbone import center
from .spec import NetworkSpec, sub_pixels

# Measured on CPUs: memory of an activation up to this size is reused; larger ones are fetched from the system and
# cleared for every layer, which costs up to a third of the time.
REUSED_FLOATS = 2**22
LARGEST_TILE = 512 * 512


@torch.no_grad()
def enlarge(
    experts: Sequence[nn.Module],
    specs: Sequence[NetworkSpec],
    frame: Tensor,
    labels: np.ndarray | None,
    patch_size: tuple[int, int],
    tile_pixels: int | None = None,
) -> Tensor:
    """Enlarge a frame.

    Args:
        experts: the networks.
        specs: theirs, which give the receptive radius.
        frame: (1, 3, H, W) in [0, 1], low resolution.
        labels: (I, J) network of each patch; None: the first for all.
        patch_size: (height, width) of a patch.
        tile_pixels: the most low-resolution pixels that are run at once, without halo; it bounds the memory. None: what
            is fastest.

    Returns:
        (1, 3, sH, sW), not clamped, in the frame's dtype.
    """
    height, width = frame.shape[-2:]
    large = specs[0].enlarged
    names = [0] if labels is None else np.unique(labels).tolist()
    most = {m: tile_pixels or best_tile(specs[m], frame.device) for m in names}
    if len(names) == 1 and height * width <= most[names[0]]:
        return enlarge_whole(experts[names[0]], specs[names[0]], frame)
    result = frame.new_empty(1, large(height), large(width), frame.shape[1]).permute(0, 3, 1, 2)  # channels last
    for m in names:
        halo = specs[m].receptive_radius
        padded = replicate_border(frame, halo)
        block = sub_pixels(specs[m].scale)[0]
        for (top, left, bottom, right), parts in boxes(labels, m, halo, most[m], patch_size, (height, width), block):
            piece = padded[..., top : bottom + 2 * halo, left : right + 2 * halo]
            output = enlarge_inner(experts[m], specs[m], piece)
            for y, x, below, after in parts:
                result[..., large(y) : large(below), large(x) : large(after)] = output[
                    ..., large(y - top) : large(below - top), large(x - left) : large(after - left)
                ]
    return result


def enlarge_whole(net: nn.Module, spec: NetworkSpec, x: Tensor) -> Tensor:
    """Enlarge whole frames, (B, 3, H, W) to (B, 3, sH, sW), with replicated border pixels."""
    return enlarge_inner(net, spec, replicate_border(x, spec.receptive_radius))


def enlarge_inner(net: nn.Module, spec: NetworkSpec, x: Tensor) -> Tensor:
    """Enlarge what lies at least r = `spec.receptive_radius` inside x: (B, 3, H, W) to (B, 3, s(H-2r), s(W-2r))."""
    return center(net(x, trim=True), [spec.enlarged(side - 2 * spec.receptive_radius) for side in x.shape[-2:]])


def best_tile(spec: NetworkSpec, device: torch.device) -> int:
    """Pixels of a tile: on a CPU small enough that memory is reused, but not so small that halos cost more."""
    if device.type != "cpu":
        return LARGEST_TILE
    return min(LARGEST_TILE, max(REUSED_FLOATS // spec.largest_activation, (32 * spec.receptive_radius) ** 2))
