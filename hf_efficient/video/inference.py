"""A whole frame through several networks without seams: every patch is run with all the context that its pixels see.

The result equals, to float rounding, running each network on the whole frame and taking every patch from the network
that the map names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hf_efficient.video.backbones import NetworkSpec

Rectangle = tuple[int, int, int, int]  # top, left, bottom, right


@torch.no_grad()
def enlarge(
    experts: Sequence[nn.Module],
    specs: Sequence[NetworkSpec],
    frame: Tensor,
    labels: np.ndarray | None,
    patch_size: tuple[int, int],
    tile_pixels: int = 512 * 512,
) -> Tensor:
    """Enlarge a frame.

    Args:
        experts: the networks.
        specs: what built them: their receptive radius is the halo.
        frame: (1, 3, H, W) in [0, 1], low resolution.
        labels: (I, J) network of each patch; None: the first for all.
        patch_size: (height, width) of a patch.
        tile_pixels: most low-resolution pixels run at once, halo not counted: bounds the memory.

    Returns:
        (1, 3, sH, sW), not clamped, in the frame's dtype.
    """
    height, width = frame.shape[-2:]
    s = specs[0].scale
    names = [0] if labels is None else np.unique(labels).tolist()
    if len(names) == 1 and height * width <= tile_pixels:
        return experts[names[0]](frame)
    result = frame.new_empty(1, s * height, s * width, frame.shape[1]).permute(0, 3, 1, 2)  # channels last
    for m in names:
        halo, everything = specs[m].radius, [(0, 0, height, width)]
        areas = everything if len(names) == 1 else merge(np.asarray(labels) == m, patch_size, (height, width))
        tiles = [tile for area in areas for tile in split(area, tile_pixels)]
        for box, parts in join(tiles, halo, (height, width), tile_pixels):
            _run(experts[m], frame, box, parts, halo, s, result)
    return result


def _run(
    net: nn.Module, frame: Tensor, box: Rectangle, parts: list[Rectangle], halo: int, s: int, result: Tensor
) -> None:
    """Enlarge a box and write its parts into the result. The frame's own border stays the network's border."""
    above, before = max(0, box[0] - halo), max(0, box[1] - halo)
    output = net(frame[..., above : box[2] + halo, before : box[3] + halo])
    for top, left, bottom, right in parts:
        y, x = s * (top - above), s * (left - before)
        result[..., s * top : s * bottom, s * left : s * right] = output[
            ..., y : y + s * (bottom - top), x : x + s * (right - left)
        ]


def merge(mask: np.ndarray, patch_size: tuple[int, int], frame_size: tuple[int, int]) -> list[Rectangle]:
    """Few rectangles of pixels that together are the marked patches, each patch in exactly one.

    Runs in a row of patches are joined, then equal runs of consecutive rows: the fewer rectangles, the less halo is
    computed twice.

    Args:
        mask: (I, J) bool.
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


def join(
    areas: list[Rectangle], halo: int, frame_size: tuple[int, int], pixels: int
) -> list[tuple[Rectangle, list[Rectangle]]]:
    """Boxes around several areas where that is less to compute than each area with a halo of its own.

    Greedy: the pair that saves most is joined, as long as one saves.

    Args:
        areas: rectangles of one network.
        halo: pixels of context around each box.
        frame_size: (height, width), beyond which there is no context.
        pixels: most in a box.

    Returns:
        Each box, and the areas in it that are wanted.
    """
    boxes, parts = np.array(areas, dtype=np.int64), [[area] for area in areas]

    def cost(box: np.ndarray) -> np.ndarray:
        low, high = np.maximum(box[..., :2] - halo, 0), np.minimum(box[..., 2:] + halo, frame_size)
        return (high - low).prod(-1)

    while len(boxes) > 1:
        first, second = boxes[:, None], boxes[None]
        unions = np.concatenate(
            [np.minimum(first[..., :2], second[..., :2]), np.maximum(first[..., 2:], second[..., 2:])], -1
        )
        saved = np.triu(cost(first) + cost(second) - cost(unions), 1)
        saved[(unions[..., 2:] - unions[..., :2]).prod(-1) > pixels] = 0
        i, j = np.unravel_index(saved.argmax(), saved.shape)
        if saved[i, j] <= 0:
            break
        boxes[i], parts[i] = unions[i, j], parts[i] + parts[j]
        boxes, parts = np.delete(boxes, j, 0), parts[:j] + parts[j + 1 :]
    return [(tuple(box), mine) for box, mine in zip(boxes.tolist(), parts, strict=True)]


def split(area: Rectangle, pixels: int) -> list[Rectangle]:
    """Bands of full width, or pieces of one, of at most so many pixels."""
    top, left, bottom, right = area
    wide = min(right - left, pixels)
    high = max(1, pixels // wide)
    return [
        (y, x, min(y + high, bottom), min(x + wide, right))
        for y in range(top, bottom, high)
        for x in range(left, right, wide)
    ]
