"""Panels show every method's marks apart, and ticks in their order."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import plots


def test_ticks_are_in_order_where_the_first_method_has_but_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: shown.append(figure))
    lines = {"one": [("95%", [3.0, 5.0])], "ours": [("80%", [1.0]), ("90%", [2.0]), ("95%", [4.0])]}
    plots.plot_panels({"task": lines}, tmp_path / "plot.png", "zeros", "ours")
    axes = shown[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["80%", "90%", "95%"]
    marks = {line.get_label(): line.lines[0].get_xydata() for line in axes.containers}
    assert marks["one"][0, 1] == marks["ours"][2, 1] == 4.0
    assert marks["one"][0, 0] < marks["ours"][2, 0]  # of equal height, and both seen
    assert marks["ours"][:, 0].round().tolist() == [0, 1, 2]
    plots.plt.close(shown[0])
