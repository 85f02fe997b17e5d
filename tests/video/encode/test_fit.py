"""From a video to a bundle: sources and settings of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_efficient.video.encode.fit import Fit, fit_video
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import MediaError, probe, read_frames
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.patches import degrade
from hf_efficient.video.settings import FitSettings
from tests.video.bundles import QUICK, source_clip, started
from tests.video.clips import make_clip, moving_frames

LOSSLESS = {"lr_quality": 0}


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (64, 2)])
@pytest.mark.parametrize("frames", [1, 3])
def test_any_size_and_a_single_frame(tmp_path: Path, size: tuple[int, int], frames: int) -> None:
    lossless: dict[str, Any] = {"codec": "libx264rgb", "pixel_format": "rgb24", "options": {"qp": "0"}}
    source = make_clip(tmp_path / "a.mkv", moving_frames(frames, *size), **lossless)
    bundle = fit_video(source, tmp_path / "bundle", **QUICK)
    assert (bundle.source.width, bundle.source.height, bundle.source.frames) == (*size, frames)


@pytest.mark.parametrize("backbone", ["espcn", "edsr", "srcnn", "vdsr"])
def test_other_backbones(tmp_path: Path, backbone: str) -> None:
    for dtype in ("float32", "float16", "int8"):
        settings = {**QUICK, "backbone": backbone, "scale": 3, "weight_dtype": dtype}
        bundle = fit_video(source_clip(tmp_path), tmp_path / dtype, **settings)
        assert bundle.manifest["experts"][0]["psnr_stored"] > 5
    sizes = [Bundle.open(tmp_path / d).sizes()["model/model.safetensors"] for d in ("float32", "float16", "int8")]
    assert sizes[0] > sizes[1] > sizes[2]


def test_each_chunk_may_have_its_own_size(tmp_path: Path) -> None:
    settings = {**QUICK, "method": "stdo", "num_chunks": 2, "num_features": [6, 3], "edges": "error"}
    bundle = fit_video(source_clip(tmp_path), tmp_path / "bundle", **settings)
    shares = [e["error_share"] for e in bundle.manifest["experts"]]
    assert shares == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_source_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    whole, cut = make_clip(tmp_path / "a.mp4", moving_frames(30, 128, 96), options={"crf": "1"}), tmp_path / "cut.mp4"
    with VideoWriter(cut, probe(whole), (128, 96), options={"crf": "1"}) as writer:  # its index comes first
        for frame in read_frames(whole):
            writer.write(*frame)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    with pytest.raises(MediaError):
        fit_video(cut, tmp_path / "bundle", **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "cut.mp4"]


def test_bad_sources_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError):
        fit_video(tmp_path / "a.mp4", tmp_path / "bundle", **QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "nas"}, "method='nas' is not known"),
        ({"scale": 1}, "scale=1"),
        ({"steps": 0}, "steps=0"),
        ({"num_chunks": "many"}, "num_chunks='many'"),
        ({"learning_rate": 2.0}, "learning_rate=2.0"),
        ({"lr_codec": "libx265", "lr_quality": 0}, "lossless"),
        ({"num_features": [4, 5]}, "a list needs"),
        ({"num_blocks": 0}, "num_blocks=0"),
    ],
)
def test_impossible_settings_are_refused_first(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_video("gone.mp4", "bundle", **settings)


def test_an_untagged_720p_video_keeps_its_colours(tmp_path: Path) -> None:
    frames = np.full((1, 720, 1280, 3), (200, 40, 60), np.uint8)
    source = make_clip(tmp_path / "a.mp4", frames, pixel_format="yuv444p")
    fit = Fit(source, tmp_path / "bundle", FitSettings(), False, torch.device("cpu"))
    fit.prepare(overwrite=False)
    fit.make_low_resolution()
    large, small = (next(read_frames(path)).rgb[100, 100].astype(int) for path in (source, fit.low_resolution))
    assert np.abs(large - small).max() <= 3


def test_lossless_low_resolution_is_the_degraded_video(tmp_path: Path) -> None:
    fit = started(tmp_path, **LOSSLESS)
    for lr, hr in fit.pairs():
        assert torch.equal(lr, degrade(hr, fit.geometry))
        assert upsample_bicubic(lr, 2).shape == hr.shape
