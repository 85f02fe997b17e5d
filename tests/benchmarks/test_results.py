"""Results of the video benchmarks survive an interruption, and rows of different settings never meet."""

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.harness.results import Rows


def test_rows_are_found_again_and_other_settings_refused(tmp_path: Path) -> None:
    path, names = tmp_path / "results.json", ("steps", "seed")
    Rows(path, Namespace(steps=5, seed=0, clips=["a"]), names).add("a", {"psnr": 30.0})
    again = Rows(path, Namespace(steps=5, seed=0, clips=["b"]), names)
    assert again.rows == {"a": {"psnr": 30.0}}
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=r"rows of other settings, \{'steps': 5\}: name another folder by --output"):
        Rows(path, Namespace(steps=6, seed=0), names)
    assert path.read_bytes() == before
