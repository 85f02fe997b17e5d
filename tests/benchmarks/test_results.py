"""Results of benchmarks survive an interruption, and rows of different settings never meet."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.harness.results import Rows, read_json, stored_runs


def test_rows_are_found_again_and_other_settings_refused(tmp_path: Path) -> None:
    path, names = tmp_path / "results.json", ("steps", "seed")
    Rows(path, Namespace(steps=5, seed=0, clips=["a"]), names).add("a", {"psnr": 30.0})
    again = Rows(path, Namespace(steps=5, seed=0, clips=["b"]), names)
    assert again.rows == {"a": {"psnr": 30.0}}
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=r"rows of other settings, \{'steps': 5\}: name another folder by --output"):
        Rows(path, Namespace(steps=6, seed=0), names)
    assert path.read_bytes() == before


def test_runs_are_stored_one_by_one_and_not_done_twice(tmp_path: Path) -> None:
    class Run(NamedTuple):
        key: str

    def work(runs: dict[str, Any]) -> Iterator[Run]:
        yield Run("a")
        yield Run("b" if runs["a"]["x"] > 1 else "c")  # chosen by what is there

    done: list[str] = []

    def do(run: Run) -> dict[str, float]:
        if run.key == "b" and not done.count("b"):
            done.append("b")
            raise KeyboardInterrupt
        done.append(run.key)
        return {"x": 1.2345}

    with pytest.raises(KeyboardInterrupt):
        stored_runs(tmp_path, work, do, 2)
    assert read_json(tmp_path / "runs.json", None) == {"a": {"x": 1.23}}
    assert stored_runs(tmp_path, work, do, 2) == {"a": {"x": 1.23}, "b": {"x": 1.23}}
    assert done == ["a", "b", "b"]
    assert len(read_json(tmp_path / "log.json", [])) == 2
