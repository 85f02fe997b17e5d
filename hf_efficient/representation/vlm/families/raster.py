"""The raster that the features of a unit form, told from the arguments of a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Raster:
    """How many rows and columns units have: the sides that an argument tells, divided by one number.

    Args:
        argument: name of a tensor of whole numbers (units, ...) whose last two columns are height and width, or of
            pixels (..., height, width).
        side: how many of them make a row or a column.
    """

    argument: str
    side: int

    def grids(self, arguments: dict[str, Any], sizes: list[int]) -> list[tuple[int, int] | None]:
        """Rows and columns of units of these sizes in a call; None where they are not those of its arguments."""
        found = sides_of(arguments.get(self.argument), len(sizes))
        if found is None:
            return [None] * len(sizes)
        grids = [(high // self.side, wide // self.side) for high, wide in found]
        return [grid if grid[0] * grid[1] == n else None for grid, n in zip(grids, sizes, strict=True)]


def sides_of(value: Any, units: int) -> list[tuple[int, int]] | None:
    """Height and width of every unit, as an argument of a call tells them; None if it tells none."""
    if not isinstance(value, Tensor):
        return None
    if value.is_floating_point():
        return [(value.shape[-2], value.shape[-1])] * units if value.dim() > 3 else None
    if value.dim() != 2 or len(value) != units or value.shape[1] < 2:
        return None
    return [(int(high), int(wide)) for high, wide in value[:, -2:].tolist()]
