"""Videos of more than 8 bits, with alpha, or interlaced."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_efficient.cli import main
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.reader import MediaError, probe, read_frames
from hf_efficient.video.measure.evaluation import evaluate
from hf_efficient.video.play.player import Player
from tests.video.bundles import QUICK
from tests.video.clips import make_clip, moving_frames


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


def interlaced_clip(path: Path, frames: int = 12) -> tuple[Path, np.ndarray]:
    """Fields of moving frames woven together, and the whole frames of the first fields."""
    moving = moving_frames(2 * frames, 96, 80)
    fields = make_clip(path.with_suffix(".mkv"), moving, rate=50, pixel_format="yuv444p")
    ffmpeg("-i", fields, "-vf", "interlace=lowpass=off", "-c:v", "libx264", "-crf", "5", "-flags", "+ilme+ildct",
           "-x264opts", "tff=1", "-pix_fmt", "yuv444p", path)  # fmt: skip
    fields.unlink()
    return path, moving[::2].astype(float)


def test_ten_bits_are_read_as_eight(tmp_path: Path) -> None:
    frames = moving_frames(3, 64, 48)
    deep = make_clip(tmp_path / "deep.mkv", frames, codec="ffv1", pixel_format="yuv444p10le", options={})
    got = np.stack([f.rgb for f in read_frames(deep)]).astype(int)
    assert probe(deep).bits == 10
    assert np.abs(got - frames).max() <= 1
    ffmpeg("-i", deep, "-vf", "scale=flags=bicubic+accurate_rnd", "-f", "rawvideo", "-pix_fmt", "rgb24",
           tmp_path / "raw")  # fmt: skip
    theirs = np.frombuffer((tmp_path / "raw").read_bytes(), np.uint8).reshape(got.shape).astype(int)
    assert np.abs(got - theirs).max() <= 1


def test_ten_bits_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_clip(
        tmp_path / "a.mkv", moving_frames(4, 96, 80), codec="libx265", pixel_format="yuv420p10le",
        options={"x265-params": "log-level=error"},
    )  # fmt: skip
    with pytest.warns(UserWarning, match="10 bits per color"):
        bundle = fit_video(source, tmp_path / "bundle", **QUICK)
    assert len(list(Player(bundle).frames())) == 4
    command = ["stdo", "encode", str(source), str(tmp_path / "other"), "--steps", "2"]
    assert main(command) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "10 bits" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: ")


def test_alpha_is_refused_or_dropped(tmp_path: Path) -> None:
    frames = moving_frames(4, 96, 80)
    source = make_clip(tmp_path / "a.mkv", frames, codec="ffv1", pixel_format="yuva444p", options={})
    with pytest.raises(MediaError, match="--alpha drop"):
        fit_video(source, tmp_path / "bundle", **QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mkv"]
    bundle = fit_video(source, tmp_path / "bundle", alpha="drop", **QUICK)
    got = np.stack([f.rgb for f in read_frames(source, probe(source, alpha="drop"))]).astype(int)
    assert np.abs(got - frames).max() <= 2
    assert evaluate(bundle.path, source)["frames"] == 4


def test_interlaced_is_refused_or_taken_apart(tmp_path: Path) -> None:
    source, truth = interlaced_clip(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="--interlaced deinterlace"):
        fit_video(source, tmp_path / "bundle", **QUICK)
    kept = list(read_frames(source, probe(source, interlaced="keep")))
    progressive = list(read_frames(source, probe(source, interlaced="deinterlace")))
    assert [f[1:] for f in progressive] == [f[1:] for f in kept]
    assert len(kept) == 12
    errors = [np.square(np.stack([f.rgb for f in frames]) - truth).mean() for frames in (progressive, kept)]
    assert errors[0] < 0.5 * errors[1]
    bundle = fit_video(source, tmp_path / "bundle", interlaced="deinterlace", **QUICK)
    assert [f.pts for f in Player(bundle).frames()] == [f.pts for f in kept]
    assert evaluate(bundle.path, source)["frames"] == 12  # against progressive frames


@pytest.mark.parametrize(("option", "value"), [("alpha", "keep"), ("interlaced", "drop")])
def test_unknown_choices(option: str, value: str) -> None:
    settings: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=f"{option}='{value}'"):
        fit_video("gone.mp4", "bundle", **settings)
