"""Plots without a display: importing this module chooses the backend."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

from benchmarks.harness.intervals import standard_error
from hf_efficient.files import written_whole

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Line = Sequence[tuple[str, Sequence[float]]]  # (tick, accuracies of all seeds)
COLUMNS = 2  # of panels
ASIDE = 0.3  # width over which the methods' marks at one tick are spread; ticks are 1 apart


def save(figure: Any, path: Path, dpi: int = 110) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    with written_whole(path) as draft:
        figure.savefig(draft, dpi=dpi, format="png")
    plt.close(figure)


def plot_panels(
    panels: Mapping[str, Mapping[str, Line]], path: Path, xlabel: str, ours: str, levels: Mapping[str, float] = {}
) -> None:
    """A panel for each task, a line with standard errors for each method.

    Args:
        panels: task -> method -> line.
        path: of the PNG file.
        xlabel: what the ticks are.
        ours: the method drawn in black.
        levels: task -> accuracy, drawn dashed as "dense".
    """
    names = list(dict.fromkeys(method for lines in panels.values() for method in lines if method != ours))
    looks: dict[str, dict[str, Any]] = {
        name: {"color": f"C{i % 10}", "marker": "o^s"[i // 10 % 3]} for i, name in enumerate(names)
    }
    looks[ours] = {"color": "black", "marker": "o", "linewidth": 2.2}
    columns = min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    figure = plt.figure(figsize=(6.5 * columns, 4 * rows), layout="constrained")
    for panel, (task, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, panel)
        if task in levels:
            axes.axhline(levels[task], color="grey", linestyle="--", label="dense")
        places = places_of(lines)
        for number, (method, line) in enumerate(lines.items()):
            beside = ASIDE * ((number + 0.5) / len(lines) - 0.5)  # else marks of equal height hide each other
            at, means = [places[tick] + beside for tick, _ in line], [mean(accuracies) for _, accuracies in line]
            errors = [standard_error(accuracies) for _, accuracies in line]
            axes.errorbar(at, means, errors, capsize=3, label=method, **{"linewidth": 1.2, **looks[method]})
        axes.set_xticks(list(places.values()), list(places))
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set(title=task, xlabel=xlabel, ylabel="test accuracy, %")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path, 130)


def places_of(lines: Mapping[str, Line]) -> dict[str, int]:
    """Tick -> its place: as in the longest line, for not every method has all."""
    longest_first = sorted(lines.values(), key=len, reverse=True)
    return {tick: at for at, tick in enumerate(dict.fromkeys(tick for line in longest_first for tick, _ in line))}
