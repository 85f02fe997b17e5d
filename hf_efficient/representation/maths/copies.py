"""Copies among the cells of a raster of pixels: those that a predictor knows already from the cells before them.

The rule is PixelPrune's (Wang et al., 2026, arXiv 2604.00886): predictive coding with the predictor of JPEG-LS
(LOCO-I) on whole cells instead of pixels. With the neighbours

    C B
    A X

X is predicted to be B where C looks like A and not like B (an edge runs down between them), else A; the first row
knows A alone, the first column B alone. A cell that looks like its prediction is a copy. Who knows the rule can put
the whole picture together again from the cells that are no copies and their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: what a cell is a copy of
NOTHING, LEFT, UP = 0, 1, 2


@dataclass
class Copies:
    """The cells of one image that are no copies, and what the others are copies of.

    Args:
        cells: (M,) long, rising: the cells that are no copies.
        stand_in: (N,) long in [0, M): which of them each of the N cells is a copy of; a cell that is none, itself.
    """

    cells: Tensor
    stand_in: Tensor

    @classmethod
    def of(cls, ways: Tensor, columns: int) -> Copies:
        """From what each cell is a copy of, (N,) in {NOTHING, LEFT, UP}, of a raster with so many columns."""
        n = len(ways)
        source = torch.arange(n, device=ways.device) - (ways == LEFT).long() - (ways == UP).long() * columns
        for _ in range((n // columns + columns).bit_length()):  # each step doubles how far a copy sees back
            source = source[source]
        original = ways == NOTHING
        return cls(original.nonzero().squeeze(1), (original.long().cumsum(0) - 1)[source])


def copied_from(cells: Tensor, tolerance: Tensor | None = None) -> Tensor:
    """What each cell of a raster is a copy of, (H, W) long in {NOTHING, LEFT, UP}.

    Args:
        cells: (H, W, D), the pixels of every cell.
        tolerance: (D,) the greatest difference of each pixel at which cells look alike; None: none at all. Copies are
            then compared by the cell they are copies of, so that differences do not add up along a row.
    """
    return _alike(cells, tolerance) if tolerance is not None else _same(cells)


def _same(cells: Tensor) -> Tensor:
    """`copied_from` of equal cells: equality holds along chains, so all cells are looked at together."""
    like_left, like_up = (torch.zeros(cells.shape[:2], dtype=torch.bool, device=cells.device) for _ in range(2))
    like_left[:, 1:] = (cells[:, 1:] == cells[:, :-1]).all(-1)
    like_up[1:] = (cells[1:] == cells[:-1]).all(-1)
    up = torch.zeros_like(like_up)
    up[1:, 1:] = like_up[1:, :-1] & ~like_left[:-1, 1:]  # C like A, and not like B
    up[1:, 0] = True
    return torch.where(up, like_up.long() * UP, like_left.long() * LEFT)


def _alike(cells: Tensor, tolerance: Tensor) -> Tensor:
    """`copied_from` of cells that look alike: diagonal after diagonal, since a cell needs those before it."""
    height, width = cells.shape[:2]
    pixels, index = cells.flatten(0, 1), torch.arange(height * width, device=cells.device).view(height, width)
    source, ways = index.clone(), torch.zeros_like(index)

    def like(a: Tensor, b: Tensor) -> Tensor:
        return ((pixels[a] - pixels[b]).abs() <= tolerance).all(-1)

    for diagonal in range(1, height + width - 1):
        rows = torch.arange(max(0, diagonal - width + 1), min(height, diagonal + 1), device=cells.device)
        columns = diagonal - rows
        above, before = (rows - 1).clamp_min(0), (columns - 1).clamp_min(0)
        a, b, c = source[rows, before], source[above, columns], source[above, before]
        inner = (rows > 0) & (columns > 0)
        up = torch.where(inner, like(c, a) & ~like(c, b), columns == 0)
        predicted, own = torch.where(up, b, a), index[rows, columns]
        copy = like(own, predicted)
        source[rows, columns] = torch.where(copy, predicted, own)
        ways[rows, columns] = torch.where(up, UP, LEFT) * copy
    return ways
