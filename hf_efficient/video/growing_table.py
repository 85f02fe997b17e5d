"""A table with one row for each frame of a long video."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike


class GrowingTable:
    """A table that grows at its end, in one piece of memory.

    A list of small arrays would not do: each is allocated between the large arrays of a frame, scattered over the
    memory that these leave behind, and so keeps the next frame out of it. Memory then grows by megabytes a frame.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype, self.width = np.dtype(dtype), 0
        self._bytes = bytearray()

    def add(self, row: ArrayLike) -> None:
        """Append a row.

        Raises:
            ValueError: it is not as long as the first.
        """
        values = np.asarray(row, self.dtype).ravel()
        if self._bytes and len(values) != self.width:
            raise ValueError(f"A row of {len(values)} numbers does not fit into a table of {self.width} columns.")
        self.width = len(values)
        self._bytes += values.tobytes()

    def __len__(self) -> int:
        return len(self._bytes) // (self.width * self.dtype.itemsize or 1)

    def array(self) -> np.ndarray:
        """(rows, columns), a copy."""
        return np.frombuffer(bytes(self._bytes), self.dtype).reshape(len(self), self.width)
