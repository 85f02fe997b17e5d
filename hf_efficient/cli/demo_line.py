"""A row of the demonstration's table, and the files of its page."""

import math
from dataclasses import dataclass

PAGE_FILES = (r"report\.html", r"landscape\.png", r"masks\.png", r"frame\.png")


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Args:
        budget: which of the three.
        name: what was done.
        cost: in words, before and after.
        quality: the same.
    """

    budget: str
    name: str
    cost: str
    quality: str


def right(share: float, count: int) -> str:
    """A share of right answers with its 95 % interval (Wilson's), as a text.

    Args:
        share: 0 to 1.
        count: answers.
    """
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return f"{100 * share:.1f}% right ({100 * (middle - half):.1f} to {100 * (middle + half):.1f})"
