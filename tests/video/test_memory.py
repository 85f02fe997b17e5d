"""Memory does not grow with the length of a video."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_efficient.video.encode.fit import Fit, fit_video
from hf_efficient.video.growing_table import GrowingTable
from hf_efficient.video.measure.evaluation import evaluate
from hf_efficient.video.settings import FitSettings
from tests.video.clips import make_clip, moving_frames

WIDTH, HEIGHT = 960, 540


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 frames, large enough for a frame's arrays to lie between those of its neighbours, if anything pins them."""
    frames = np.tile(moving_frames(4, WIDTH, HEIGHT), (8, 1, 1, 1))
    return make_clip(tmp_path_factory.mktemp("large") / "large.mp4", frames, options={"preset": "ultrafast"})


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_scoring_many_frames_takes_the_memory_of_a_few(large: Path, tmp_path: Path) -> None:
    fit = Fit(large, tmp_path / "bundle", FitSettings(steps=1), False, torch.device("cpu"))
    fit.prepare(False)
    fit.make_low_resolution()
    used: list[float] = []

    @contextmanager
    def watched(frames: Any, what: str) -> Any:
        def each() -> Any:
            for frame in frames:
                used.append(resident())
                yield frame

        yield each()

    fit.progress.frames = watched  # type: ignore[method-assign]
    fit.score()
    assert len(used) == 32
    assert used[-1] - used[8] < 40  # it was 3 MiB for each frame


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_evaluating_many_frames_takes_the_memory_of_a_few(large: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"method": "jstdo", "steps": 1, "num_features": 1, "num_blocks": 1, "max_patches": 8}
    fit_video(large, tmp_path / "bundle", progress_bar=False, **small)
    used: list[float] = []
    evaluate(tmp_path / "bundle", large, progress=lambda _: used.append(resident()))
    assert len(used) == 32
    assert used[-1] - used[8] < 40


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_rows_are_what_was_added(dtype: type) -> None:
    expected: np.ndarray = np.random.default_rng(0).integers(0, 200, (70, 9)).astype(dtype)
    rows = GrowingTable(dtype)
    for n, row in enumerate(expected):
        assert len(rows) == n
        rows.add(row)
    np.testing.assert_array_equal(rows.array(), expected)
    assert rows.array().dtype == dtype


def test_no_rows_and_unequal_rows() -> None:
    rows = GrowingTable(np.float32)
    assert rows.array().shape == (0, 0)
    rows.add(np.zeros(3))
    with pytest.raises(ValueError, match="A row of 4 numbers"):
        rows.add(np.zeros(4))
