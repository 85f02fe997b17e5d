"""A row of pictures, and what is drawn into them."""

from collections.abc import Sequence

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

matplotlib.use("Agg")

INK, PALE, OURS, OTHER = "#222222", "#bbbbbb", "#00796b", "#c2410c"
HEIGHT, WIDTH = 3.2, 2.6  # inches, of a panel with two lines under it


def panels(titles: Sequence[str], widths: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A row of panels without ticks, as wide as each other or in these proportions."""
    widths = widths or [1.0] * len(titles)
    figure, axes = plt.subplots(
        1, len(titles), figsize=(WIDTH * sum(widths), HEIGHT), squeeze=False, width_ratios=widths, layout="constrained"
    )
    for place, title in zip(axes[0], titles, strict=True):
        place.set_title(title, fontsize=9, color=INK)
        place.set_xticks([])
        place.set_yticks([])
        for side in place.spines.values():
            side.set_visible(False)
    return figure, list(axes[0])


def note(place: Axes, text: str) -> None:
    """A line under a picture."""
    place.set_xlabel(text, fontsize=8, color=INK, loc="left")


def at(point: Tensor) -> tuple[float, float]:
    """(2,) -> its coordinates."""
    return float(point[0]), float(point[1])


def arrow(place: Axes, start: Tensor, end: Tensor, colour: str) -> None:
    """From one point to another."""
    look = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    place.annotate("", at(end), at(start), arrowprops=look)
