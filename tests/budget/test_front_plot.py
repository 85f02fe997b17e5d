"""The picture of a search: every plan has its name, and none covers another."""

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.text import Text

from hf_efficient import EfficiencyPlan
from hf_efficient.budget.planner.found import Candidate, FoundPlan
from hf_efficient.budget.planner.front_plot import figure_of, spread


def crowded(count: int) -> FoundPlan:
    """Plans that keep one limit: nearly one cost, and qualities close together."""

    def one(name: str, cost: float, quality: float) -> Candidate:
        return Candidate(name, EfficiencyPlan(), quality, {"cache_bytes": cost}, {"cache_bytes": cost})

    names = [f"{method} {i} of 144, sparsegpt 0.{i}" for i, method in enumerate(["id_pruner", "itg", "scope"] * 9)]
    tried = [one(name, 39 + 0.01 * (i % 3), 0.9 + 0.001 * i) for i, name in enumerate(names[:count])]
    return FoundPlan(tried[-1], {"cache_bytes": 40.0}, one("stock", 100.0, 0.97), tried)


@pytest.mark.parametrize("count", [1, 8, 24])
def test_names_do_not_overlap(count: int, tmp_path: Path) -> None:
    found = crowded(count)
    figure = figure_of(found, "cache_bytes")
    figure.savefig(tmp_path / "drawn.png")  # lays it out
    names = figure.axes[0].texts
    assert {text.get_text() for text in names} == {one.name for one in (found.stock, *found.tried)}
    boxes = [Text.get_window_extent(text) for text in names]  # without the line to the point
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    inside, page = figure.axes[0].get_window_extent(), figure.bbox
    for box in boxes:
        assert box.x0 >= inside.x1  # beside the points
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1


def test_heights_move_only_where_they_must() -> None:
    assert spread([0.1, 0.5, 0.9], 0.2) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5, 0.5], 0.2) == pytest.approx([0.5, 0.7, 0.9])
    assert spread([0.9, 0.95, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert spread([0.0] * 11, 0.5) == pytest.approx([i / 10 for i in range(11)])
