"""Enlarge a whole frame by several networks, without seams: each patch is run with its full receptive field.

Up to float rounding, the result is that of running each network on the whole frame, with replicated border pixels, and
taking every patch from the network that the map names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from hf_efficient.video.patches import replicate_border

from .backbones.backbone import center
from .spec import NetworkSpec

Rectangle = tuple[int, int, int, int]  # top, left, bottom, right

# Measured on CPUs: memory of an activation up to this size is reused; larger ones are fetched from the system and
# cleared for every layer, which costs up to a third of the time.
REUSED_FLOATS = 2**22
LARGEST_TILE = 512 * 512
MOST_COLUMNS = 64  # of tiles


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
    s = specs[0].scale
    names = [0] if labels is None else np.unique(labels).tolist()
    most = {m: tile_pixels or best_tile(specs[m], frame.device) for m in names}
    if len(names) == 1 and height * width <= most[names[0]]:
        return enlarge_whole(experts[names[0]], specs[names[0]], frame)
    result = frame.new_empty(1, s * height, s * width, frame.shape[1]).permute(0, 3, 1, 2)  # channels last
    for m in names:
        halo, everything = specs[m].receptive_radius, [(0, 0, height, width)]
        padded = replicate_border(frame, halo)
        areas = everything if len(names) == 1 else merge_patches(np.asarray(labels) == m, patch_size, (height, width))
        tiles = [tile for area in areas for tile in split_into_tiles(area, most[m])]
        for (top, left, bottom, right), parts in join_boxes(tiles, halo, most[m]):
            piece = padded[..., top : bottom + 2 * halo, left : right + 2 * halo]
            output = enlarge_inner(experts[m], specs[m], piece)
            for y, x, below, after in parts:
                result[..., s * y : s * below, s * x : s * after] = output[
                    ..., s * (y - top) : s * (below - top), s * (x - left) : s * (after - left)
                ]
    return result


def enlarge_whole(net: nn.Module, spec: NetworkSpec, x: Tensor) -> Tensor:
    """Enlarge whole frames, (B, 3, H, W) to (B, 3, sH, sW), with replicated border pixels."""
    return enlarge_inner(net, spec, replicate_border(x, spec.receptive_radius))


def enlarge_inner(net: nn.Module, spec: NetworkSpec, x: Tensor) -> Tensor:
    """Enlarge what lies at least r = `spec.receptive_radius` inside x: (B, 3, H, W) to (B, 3, s(H-2r), s(W-2r))."""
    return center(net(x, trim=True), [spec.scale * (side - 2 * spec.receptive_radius) for side in x.shape[-2:]])


def best_tile(spec: NetworkSpec, device: torch.device) -> int:
    """Pixels of a tile: on a CPU small enough that memory is reused, but not so small that halos cost more."""
    if device.type != "cpu":
        return LARGEST_TILE
    return min(LARGEST_TILE, max(REUSED_FLOATS // spec.largest_activation, (32 * spec.receptive_radius) ** 2))


def merge_patches(mask: np.ndarray, patch_size: tuple[int, int], frame_size: tuple[int, int]) -> list[Rectangle]:
    """A few rectangles of pixels that cover the marked patches, each patch by exactly one.

    Neighbors in a row are joined to runs, then equal runs of consecutive rows to rectangles. The fewer rectangles, the
    less halo is computed twice.

    Args:
        mask: (I, J) bool, the marked patches.
        patch_size: (height, width) of a patch; the last row and column may be cut short.
        frame_size: (height, width) of the frame.
    """
    (ph, pw), (height, width) = patch_size, frame_size
    done: list[Rectangle] = []
    open_runs: dict[tuple[int, int], int] = {}  # (first, past the last) column of a run -> row where it began
    for i in range(len(mask) + 1):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask[i] if i < len(mask) else [0] * mask.shape[1], [0]])))
        runs = set(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        for run in sorted(set(open_runs) - runs):
            first = open_runs.pop(run)
            done.append((first * ph, run[0] * pw, min(i * ph, height), min(run[1] * pw, width)))
        for run in runs:
            open_runs.setdefault(run, i)
    return done


def join_boxes(areas: list[Rectangle], halo: int, pixels: int) -> list[tuple[Rectangle, list[Rectangle]]]:
    """Join areas to boxes where a common box is less to compute than the separate areas.

    Greedy: the pair that saves most is joined, as long as one saves.

    Args:
        areas: rectangles of one network.
        halo: pixels of context around each box.
        pixels: the most in a box.

    Returns:
        Each box, and the areas in it.
    """
    boxes, parts = np.array(areas, dtype=np.int64), [[area] for area in areas]

    def work(boxes: np.ndarray) -> np.ndarray:
        """Pixels that a layer computes: the first has all of the halo, the last none, on average half."""
        return (boxes[..., 2:] - boxes[..., :2] + halo).prod(-1)

    while len(boxes) > 1:
        first, second = boxes[:, None], boxes[None]
        unions = np.concatenate(
            [np.minimum(first[..., :2], second[..., :2]), np.maximum(first[..., 2:], second[..., 2:])], -1
        )
        saved = np.triu(work(first) + work(second) - work(unions), 1)
        saved[(unions[..., 2:] - unions[..., :2]).prod(-1) > pixels] = 0
        i, j = np.unravel_index(saved.argmax(), saved.shape)
        if saved[i, j] <= 0:
            break
        boxes[i], parts[i] = unions[i, j], parts[i] + parts[j]
        boxes, parts = np.delete(boxes, j, 0), parts[:j] + parts[j + 1 :]
    return [(tuple(box), mine) for box, mine in zip(boxes.tolist(), parts, strict=True)]


def split_into_tiles(area: Rectangle, pixels: int) -> list[Rectangle]:
    """Tiles of about equal size and at most `pixels` pixels each, with the shortest borders between them."""
    top, left, bottom, right = area
    height, width = bottom - top, right - left

    def borders(columns: int) -> int:
        return (columns - 1) * height + (rows(columns) - 1) * width

    def rows(columns: int) -> int:
        return math.ceil(height / max(1, pixels // math.ceil(width / columns)))

    fewest = math.ceil(width / pixels)
    columns = min(range(fewest, min(width, fewest + MOST_COLUMNS) + 1), key=borders)
    ys = [top + height * i // rows(columns) for i in range(rows(columns) + 1)]
    xs = [left + width * j // columns for j in range(columns + 1)]
    return [(y, x, below, after) for y, below in pairwise(ys) for x, after in pairwise(xs)]
