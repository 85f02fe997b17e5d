"""A frame in rectangles: what one network enlarges at once, so that the least is computed twice. Without torch."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

Rectangle = tuple[int, int, int, int]  # top, left, bottom, right
MOST_COLUMNS = 64  # of tiles


def boxes(
    labels: np.ndarray | None,
    m: int,
    halo: int,
    pixels: int,
    patch_size: tuple[int, int],
    frame_size: tuple[int, int],
    block: int = 1,
) -> list[tuple[Rectangle, list[Rectangle]]]:
    """What network m enlarges of a frame: boxes that are run at once, and the areas of each that it gives.

    Args:
        labels: (I, J) network of each patch; None: m everywhere.
        m: the network.
        halo: low-resolution pixels of context around each box.
        pixels: the most in a box.
        patch_size: (height, width) of a patch.
        frame_size: (height, width) of the low-resolution frame.
        block: boxes start and end at multiples of it; patches do.
    """
    mine = None if labels is None else np.asarray(labels) == m
    areas = [(0, 0, *frame_size)] if mine is None or mine.all() else merge_patches(mine, patch_size, frame_size)
    return join_boxes([tile for area in areas for tile in split_into_tiles(area, pixels, block)], halo, pixels)


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


def split_into_tiles(area: Rectangle, pixels: int, block: int = 1) -> list[Rectangle]:
    """Tiles of about equal size and at most `pixels` pixels each, with the shortest borders between them.

    With `block` > 1 their borders are moved back to its multiples, and the last ones may have a little more.
    """
    top, left, bottom, right = area
    height, width = bottom - top, right - left

    def borders(columns: int) -> int:
        return (columns - 1) * height + (rows(columns) - 1) * width

    def rows(columns: int) -> int:
        return math.ceil(height / max(1, pixels // math.ceil(width / columns)))

    fewest = math.ceil(width / pixels)
    columns = min(range(fewest, min(width, fewest + MOST_COLUMNS) + 1), key=borders)
    ys = [top + height * i // rows(columns) // block * block for i in range(rows(columns) + 1)]
    xs = [left + width * j // columns // block * block for j in range(columns + 1)]
    return [(y, x, below, after) for y, below in pairwise(ys) for x, after in pairwise(xs)]
