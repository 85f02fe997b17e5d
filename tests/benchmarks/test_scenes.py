"""Parts of a bundle against codecs alone, in the table of the film."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.harness.results import Rows
from benchmarks.video.scenes import over, write

CODEC = [{"psnr_luma": 32.0, "bytes": 400_000}, {"psnr_luma": 30.0, "bytes": 100_000}]


@pytest.mark.parametrize(
    ("size", "quality", "expected"),
    [(100_000, 30.0, "+0.0 %"), (200_000, 31.0, "+0.0 %"), (100_000, 31.0, "-50.0 %"), (600_000, 32.0, "+50.0 %")],
)
def test_bits_are_compared_at_equal_quality_on_a_logarithmic_scale(size: int, quality: float, expected: str) -> None:
    assert over(size, quality, CODEC) == expected


@pytest.mark.parametrize("quality", [29.9, 32.1])
def test_nothing_is_said_outside_of_the_points_of_a_codec(quality: float) -> None:
    assert not over(200_000, quality, CODEC)


def test_what_is_sent_counts_except_for_bicubic(tmp_path: Path) -> None:
    film = {
        "stream": 200_000, "frames": 10, "taken": "delta", "ways": {},
        "parts": {"bicubic": [102, 31.0, 1.2], "delta": [2_000, 31.0, 1.0]},
    }  # fmt: skip
    rows = {"film / 56": film, **{f"film / x265 / {n}": {**row, "kbps": 1.0} for n, row in enumerate(CODEC)}}
    (tmp_path / "results.json").write_text(json.dumps({"settings": {}, "rows": rows}))
    write(Rows(tmp_path / "results.json", Namespace(), ()), tmp_path)
    bicubic, delta = [line for line in (tmp_path / "table.md").read_text().splitlines() if "| film | 56" in line]
    assert "| 1.2000 |  | +0.0 % |  |" in bicubic
    assert "| 1.0000 |  | +1.0 % |  |" in delta
    assert "| film | x265 | 1 | 100,000 | 1.0 | 30.00 |" in (tmp_path / "table.md").read_text()
