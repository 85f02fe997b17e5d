"""A network for each time segment: NAS (Yeo et al., OSDI 2018), the baseline of STDO."""

from __future__ import annotations

import numpy as np

from .assignment import Assignment
from .stdo import choose_num_chunks


def time_chunks(frames: int, patches: int, k: int) -> np.ndarray:
    """k equal time segments: (frames·patches,) labels in order t, i, j.

    Raises:
        ValueError: there are fewer frames than segments.
    """
    if not 1 <= k <= frames:
        raise ValueError(f"{frames} frames cannot be split into {k} time segments; expected 1 to {frames}.")
    return np.repeat(np.arange(frames) * k // frames, patches)


class Time(Assignment):
    """A chunk is a segment of time."""

    def auto_chunks(self, errors: np.ndarray, steps: int) -> int:
        """As many as STDO would have."""
        return choose_num_chunks(errors, steps)

    def labels(self, errors: np.ndarray, k: int, edges: str) -> np.ndarray:
        """All patches of a frame are in one chunk."""
        frames, patches = errors.shape
        return time_chunks(frames, patches, k)
