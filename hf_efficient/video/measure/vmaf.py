"""VMAF, by the FFmpeg of the imageio-ffmpeg package: Netflix's measure of how good a video looks, 0 to 100.

VMAF-NEG ("no enhancement gain") is the same without the points that sharpening and contrast earn; where the two
differ, a player has made the picture stronger, not nearer to its source.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hf_efficient.extras import extra
from hf_efficient.files import ffmpeg_url
from hf_efficient.video.files.containers import ONLY_THIS_FILE
from hf_efficient.video.files.outputs import open_output
from hf_efficient.video.files.reader import StrPath, VideoInfo

MODELS = r"model='version=vmaf_v0.6.1\:name=vmaf|version=vmaf_v0.6.1neg\:name=vmaf_neg'"
# frames are paired by number: by time stamp, one that a container rounds would be paired with its neighbor
BY_NUMBER = "settb=1/25,setpts=N"


def vmaf_of_file(distorted: StrPath, source: StrPath) -> dict[str, float]:
    """VMAF and VMAF-NEG of a whole video.

    Args:
        distorted: the file.
        source: the video that it should be, of the same size and number of frames.

    Returns:
        "vmaf" and "vmaf_neg": means over the frames.

    Raises:
        ImportError: imageio-ffmpeg is not installed.
        RuntimeError: its FFmpeg failed.
    """
    with extra("video"):
        import imageio_ffmpeg

    only = [word for name, value in ONLY_THIS_FILE.items() for word in (f"-{name}", value)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *only, "-i", ffmpeg_url(distorted), *only, "-i", ffmpeg_url(source)]
    filters = f"[0:v]{BY_NUMBER}[a];[1:v]{BY_NUMBER}[b];[a][b]libvmaf={MODELS}:log_fmt=json:log_path=vmaf.json"
    with tempfile.TemporaryDirectory() as folder:
        command += ["-lavfi", filters, "-f", "null", "-"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        log = Path(folder) / "vmaf.json"
        if not log.is_file():
            raise RuntimeError(f"VMAF could not be measured: {run.stderr.strip().splitlines()[-1:]}")
        pooled = json.loads(log.read_text())["pooled_metrics"]
    return {name: float(pooled[name]["mean"]) for name in ("vmaf", "vmaf_neg")}


def vmaf_of_frames(frames: Iterable[np.ndarray], like: VideoInfo, source: StrPath) -> dict[str, float]:
    """The same of frames that a player shows, written without loss.

    Args:
        frames: all of them, (height, width, 3) uint8.
        like: the properties of the source, which give size, rate and chroma.
        source: the video that they should be.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.mkv"
        step = max(1, round(1 / (like.rate * like.time_base)))
        with open_output(path, like, "ffv1", None, None, None) as writer:
            for n, rgb in enumerate(frames):
                writer.write(np.ascontiguousarray(rgb), n * step)
        return vmaf_of_file(path, source)
