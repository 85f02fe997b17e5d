"""The grid of patches over a frame. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Low-resolution patches as published (width, height): 20 x 10, 10 x 6 and 10 x 5 of them in a 1080p frame.
PUBLISHED_PATCHES: dict[float, tuple[int, int]] = {2: (48, 54), 3: (64, 60), 4: (48, 54)}
PATCHES = {1.5: (48, 48), **PUBLISHED_PATCHES}  # even, also when halved
FEWEST_PATCHES = 12  # of a frame; smaller frames get smaller patches
SMALLEST_SIDE = 12


@dataclass(frozen=True)
class Geometry:
    """The grid of patches over a frame. Nothing is dropped: the last column and row are narrower where they must be.

    Args:
        width: of the high-resolution frame.
        height: likewise.
        scale: s: 1.5, 2, 3 or 4.
        patch_width: of a low-resolution patch.
        patch_height: likewise.
    """

    width: int
    height: int
    scale: float
    patch_width: int
    patch_height: int

    @classmethod
    def choose(cls, width: int, height: int, scale: float) -> Geometry:
        """The published patch (48 x 48 at x1.5), halved until a frame has at least FEWEST_PATCHES of them."""
        w, h = PATCHES[scale]
        geometry = cls(width, height, scale, w, h)
        while geometry.columns * geometry.rows < FEWEST_PATCHES and min(w, h) // 2 >= SMALLEST_SIDE:
            w, h = w // 2, h // 2
            geometry = cls(width, height, scale, w, h)
        return geometry

    @property
    def lr_width(self) -> int:
        """Width of the low-resolution frame: enough for all columns, and even, as 4:2:0 wants it."""
        return 2 * math.ceil(self.width / (2 * self.scale))

    @property
    def lr_height(self) -> int:
        return 2 * math.ceil(self.height / (2 * self.scale))

    def large(self, side: int) -> int:
        """Pixels of a side, or of anything that the scale makes whole, at high resolution."""
        return int(side * self.scale)

    @property
    def columns(self) -> int:
        """J."""
        return math.ceil(self.lr_width / self.patch_width)

    @property
    def rows(self) -> int:
        """I."""
        return math.ceil(self.lr_height / self.patch_height)

    def windows(self) -> tuple[np.ndarray, int, int]:
        """Equal windows on all patches, moved inwards where they would leave the frame.

        Returns:
            (I·J, 2) top and left of each window in row-major order of patches, and the windows' height and width.
        """
        height, width = min(self.patch_height, self.lr_height), min(self.patch_width, self.lr_width)
        tops = (np.arange(self.rows) * self.patch_height).clip(0, self.lr_height - height)
        lefts = (np.arange(self.columns) * self.patch_width).clip(0, self.lr_width - width)
        return np.stack(np.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2), height, width
