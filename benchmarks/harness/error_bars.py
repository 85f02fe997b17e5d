"""What seeds say: accuracy of several methods over one setting with bars of one standard error, and intervals."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib
from scipy import stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Line = Sequence[tuple[str, Sequence[float]]]  # (tick, accuracies of all seeds)


def plot_panels(
    panels: Mapping[str, Mapping[str, Line]], path: Path, xlabel: str, ours: str, levels: Mapping[str, float] = {}
) -> None:
    """A panel for each task, a line for each method; `ours` is drawn in black, `levels` (task -> accuracy) dashed."""
    size = (5 * len(panels), 4)
    figure, grid = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for (task, lines), axes in zip(panels.items(), grid[0], strict=True):
        if task in levels:
            axes.axhline(levels[task], color="grey", linestyle="--", label="dense")
        for method, line in lines.items():
            errors = [stdev(a) / math.sqrt(len(a)) if len(a) > 1 else 0 for _, a in line]
            style = {"color": "black", "linewidth": 2.2} if method == ours else {"linewidth": 1.2}
            axes.errorbar(
                [tick for tick, _ in line], [mean(a) for _, a in line], errors,
                marker="o", capsize=3, label=method, **style,
            )  # fmt: skip
        axes.set(title=task, xlabel=xlabel, ylabel="test accuracy, %")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t; nan for one value."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else math.nan


def cell(accuracies: Sequence[float]) -> str:
    """Mean and standard deviation for a table; empty without runs."""
    if not accuracies:
        return ""
    return f"{mean(accuracies):.2f} ± {stdev(accuracies) if len(accuracies) > 1 else 0:.2f}"
