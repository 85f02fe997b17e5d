"""`ffmpeg` for the tests of this folder: the one that the imageio-ffmpeg package brings, wherever they run.

It is an FFmpeg of its own (with zimg and libvmaf), not the libraries inside PyAV: an independent truth.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest


@pytest.fixture(scope="module", autouse=True)
def _ffmpeg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder, before = tmp_path_factory.mktemp("bin"), os.environ["PATH"]
    (folder / "ffmpeg").symlink_to(Path(imageio_ffmpeg.get_ffmpeg_exe()).resolve())
    os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
    yield
    os.environ["PATH"] = before
