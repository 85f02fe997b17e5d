"""Markdown tables, and the cells that stand in them."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.harness.intervals import half_interval


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table, without a line break at its end."""
    lines = [line(head), "|---" * len(head) + "|"]
    return "\n".join(lines + [line(row) for row in rows])


def line(cells: Iterable[Any]) -> str:
    """One row of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and standard deviation; empty without values."""
    if not values:
        return ""
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"


def mean_and_interval(values: Sequence[float], digits: int = 2) -> str:
    """Signed mean and half of its 95 % interval; empty for fewer than two values."""
    return f"{mean(values):+.{digits}f} ± {half_interval(values):.{digits}f}" if len(values) > 1 else ""


def gain(values: Sequence[float], digits: int = 2) -> str:
    """The same, bold where the interval leaves out zero."""
    said = mean_and_interval(values, digits)
    return f"**{said}**" if said and abs(mean(values)) > half_interval(values) else said
