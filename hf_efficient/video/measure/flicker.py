"""Flicker: how much of what stands still in the source changes from frame to frame in what is played."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BLOCK = 8  # pixels of a block's side
STILL = 1.0  # levels of 255: a block whose luma changes by less on average stands still


@dataclass
class Flicker:
    """Collects frame after frame.

    With p and q the luma of the played video and of its source (levels of 255), and S all pixels of blocks of 8 x 8
    that stand still in the source from frame t - 1 to t,

        flicker = sqrt(mean over t and S of ((p_t - p_(t-1)) - (q_t - q_(t-1)))²).

    An error that stays the same costs nothing, one that comes and goes does; the source's own noise is subtracted.

    Attributes:
        total: sum of squares.
        still: pixels in it.
        pixels: all pixels that were compared.
    """

    total: float = 0.0
    still: int = 0
    pixels: int = 0
    _last: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, played: np.ndarray, source: np.ndarray) -> None:
        """Add the next frame.

        Args:
            played: (H, W) float, luma in levels of 255.
            source: the same of the true frame.
        """
        if self._last is not None:
            change, true = played - self._last[0], source - self._last[1]
            mask = still_pixels(true)
            self.total += float(np.square(change - true, dtype=np.float64)[mask].sum())
            self.still += int(mask.sum())
            self.pixels += mask.size
        self._last = played, source

    @property
    def value(self) -> float:
        """Levels of 255; NaN where nothing stood still."""
        return math.sqrt(self.total / self.still) if self.still else math.nan

    @property
    def share(self) -> float:
        """Share of the pixels that stood still."""
        return self.still / self.pixels if self.pixels else 0.0


def still_pixels(change: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of the blocks in which luma changes by less than STILL on average."""
    height, width = change.shape
    padded = np.pad(np.abs(change), [(0, -height % BLOCK), (0, -width % BLOCK)], mode="edge")
    blocks = padded.reshape(len(padded) // BLOCK, BLOCK, -1, BLOCK).mean((1, 3)) < STILL
    return blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]
