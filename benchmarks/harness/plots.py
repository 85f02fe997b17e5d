"""Plots without a display: importing this module chooses the backend."""

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
    size = (5 * len(panels), 4)
    names = list(dict.fromkeys(method for lines in panels.values() for method in lines if method != ours))
    looks: dict[str, dict[str, Any]] = {
        name: {"color": f"C{i % 10}", "marker": "o^s"[i // 10 % 3]} for i, name in enumerate(names)
    }
    looks[ours] = {"color": "black", "marker": "o", "linewidth": 2.2}
    figure, grid = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for (task, lines), axes in zip(panels.items(), grid[0], strict=True):
        if task in levels:
            axes.axhline(levels[task], color="grey", linestyle="--", label="dense")
        for method, line in lines.items():
            ticks, means = [tick for tick, _ in line], [mean(accuracies) for _, accuracies in line]
            errors = [standard_error(accuracies) for _, accuracies in line]
            axes.errorbar(ticks, means, errors, capsize=3, label=method, **{"linewidth": 1.2, **looks[method]})
        axes.set(title=task, xlabel=xlabel, ylabel="test accuracy, %")
        axes.legend(fontsize=8)
    save(figure, path, 130)
