"""A row of the demonstration's table, and the files of its page."""

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
