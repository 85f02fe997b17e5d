"""Quality over a cost, as a picture: all that was tried, each with its name in a column beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_efficient.extras import extra

from .limits import COSTS

if TYPE_CHECKING:
    from .found import FoundPlan

SIZE, LINE = 7, 0.15  # of a name: points, and inches from one to the next
WIDTH, HEIGHT = 8.5, 4.0  # of the picture, in inches; it is higher where there are many names
FRONT, OTHER, PLAN = "#4477aa", "#bbbbbb", "#cc3311"


def figure_of(found: FoundPlan, name: str) -> Any:
    """The front as a line, the limit, the plan, and names without overlap.

    Args:
        found: by the search.
        name: of the cost.

    Returns:
        A figure of matplotlib.

    Raises:
        ImportError: matplotlib is absent; the message says what to install.
    """
    with extra("plots"):
        from matplotlib.figure import Figure

    front = found.front(name)
    points = [one for one in (found.stock, *found.tried) if name in one.measured]
    figure = Figure(figsize=(WIDTH, max(HEIGHT, LINE * len(points) + 1)), layout="constrained")
    axes = figure.subplots()
    axes.plot([c.measured[name] for c in front], [c.quality for c in front], color=FRONT, label="front")
    for one in points:
        axes.plot(one.measured[name], one.quality, "o", color=FRONT if one in front else OTHER)
    axes.plot(found.measured[name], found.quality, "*", markersize=14, color=PLAN, label="the plan")
    if name in found.limits:
        axes.axvline(found.limits[name], color="grey", linestyle="--", label="limit")
    axes.set_xlabel(f"{COSTS[name][1]} ({COSTS[name][0]})")
    axes.set_ylabel("quality")
    axes.legend(fontsize=8)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)  # names that stand beside it change it no more
    ordered = sorted(points, key=lambda one: (one.quality, one.measured[name]))
    gap = LINE / (figure.get_size_inches()[1] - 1)
    heights = spread([(one.quality - low) / (high - low) for one in ordered], gap)
    for one, height in zip(ordered, heights, strict=True):
        axes.annotate(
            one.name, (one.measured[name], one.quality), (1.03, height), textcoords="axes fraction", va="center",
            fontsize=SIZE, color=PLAN if one is found.best else "black", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#dddddd", "linewidth": 0.6, "shrinkB": 2},
        )  # fmt: skip
    return figure


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights in [0, 1], in ascending order, moved as little as it takes to be `gap` apart.

    Where they do not fit, they are as far apart as they can be.
    """
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    found: list[float] = []
    for height in wanted:
        found.append(max(height, found[-1] + gap if found else 0.0))
    for i in reversed(range(len(found))):
        found[i] = min(found[i], 1 - gap * (len(found) - 1 - i))
    return found
