"""Measures against other implementations and closed forms."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_efficient.video.encode.rate_control import network_bytes, parse_rate
from hf_efficient.video.files.reader import Frame, read_frames
from hf_efficient.video.measure.evaluation import enlarged_frames, evaluate, general_frames, ssim
from hf_efficient.video.measure.rate_distortion import bd_rate
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import FitSettings
from tests.video.bundles import quick_bundle
from tests.video.clips import make_clip, moving_frames


def test_ssim_is_scikit_images() -> None:
    from skimage.metrics import structural_similarity

    x = moving_frames(1, 60, 50)[0]
    y = (x.astype(int) + np.random.default_rng(0).integers(-20, 21, x.shape)).clip(0, 255).astype(np.uint8)
    luma = [p @ np.array([0.299, 0.587, 0.114]) for p in (x, y)]
    _, field = structural_similarity(
        *luma, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )
    assert ssim(x, y) == pytest.approx(field[5:-5, 5:-5].mean(), abs=1e-4)
    assert ssim(x, x) == pytest.approx(1)
    assert ssim(x[:4, :3], x[:4, :3]) == pytest.approx(1)


def test_psnr_is_ffmpegs(tmp_path: Path) -> None:
    bundle = quick_bundle(tmp_path)
    result = evaluate(bundle.path, tmp_path / "source.mp4")
    frames = np.stack([frame.rgb for frame in Player(bundle).frames()])
    decoded = make_clip(tmp_path / "out.mkv", frames, codec="libx264rgb", pixel_format="rgb24", options={"qp": "0"})
    to_rgb = "zscale=min=470bg:rin=limited:f=bicubic:m=gbr:r=full:d=none,format=gbrp"
    chain = f"[1]{to_rgb}[b];[0]format=gbrp[a];[a][b]psnr"
    command: list[Any] = ["ffmpeg", "-i", decoded, "-i", tmp_path / "source.mp4", "-lavfi", chain, "-f", "null", "-"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    theirs = float(log.split("average:")[1].split()[0])
    assert result["stdo"]["psnr"] == pytest.approx(theirs, abs=0.3)  # chroma is enlarged a little differently
    assert result["stdo"]["psnr_frame_mean"] >= result["stdo"]["psnr"]  # Jensen
    assert result["chunks"][0]["psnr_paper_stdo"] == pytest.approx(result["stdo"]["psnr_paper"])
    assert len(result["frame_psnr"]["stdo"]) == 12


@pytest.mark.parametrize(
    ("text", "rate"), [("1.5Mbps", 1.5e6), ("800k", 8e5), ("250000", 250000), ("2 Mbit/s", 2e6), ("64kbps", 64000)]
)
def test_rates_are_understood(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1M", "0", "1.5.2M", ".", "1 MB"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a bit rate"):
        parse_rate(text)


def test_bd_rate_of_a_curve_that_needs_half_the_bits() -> None:
    anchor = [(100.0, 30.0), (200.0, 33.0), (400.0, 36.0), (800.0, 38.0)]
    assert bd_rate(anchor, [(b / 2, q) for b, q in anchor]) == pytest.approx(-0.5)
    assert bd_rate(anchor, anchor) == pytest.approx(0)
    assert np.isnan(bd_rate(anchor, [(b, q + 20) for b, q in anchor]))


def test_network_bytes_count_all_networks() -> None:
    one = network_bytes(FitSettings(method="jstdo"))
    assert network_bytes(FitSettings(method="stdo", num_chunks=3)) == 3 * one
    assert network_bytes(FitSettings(method="jstdo", weight_dtype="float32")) == 2 * one
    sizes = FitSettings(method="stdo", num_chunks=2, num_features=[16, 8])
    assert one < network_bytes(sizes) < 2 * one


def test_the_stream_is_decoded_once_for_all_ways_to_enlarge_some_frames_or_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = Player(quick_bundle(tmp_path, method="stdo", num_chunks=2))
    low, source = player.bundle.low_resolution, tmp_path / "source.mp4"
    truth = [frame.rgb for frame in read_frames(source)]
    by_itself = {"stdo": [frame.rgb for frame in player.frames()], "general": list(general_frames(low, player))}
    by_itself |= {name: list(enlarged_frames(low, player, name)) for name in ("bicubic", "lanczos")}
    opened: list[Path] = []

    def noted(path: Path, *rest: Any) -> Iterator[Frame]:
        opened.append(path)
        return read_frames(path, *rest)

    for module in ("files.played", "measure.evaluation"):
        monkeypatch.setattr(f"hf_efficient.video.{module}.read_frames", noted)
    every, some = (evaluate(player.bundle.path, source, every=n) for n in (1, 5))
    assert sorted(opened) == sorted([low, source, low, source])
    for name, frames in by_itself.items():
        errors = [np.square(x / 255 - y / 255).mean() for x, y in zip(frames, truth, strict=True)]
        assert 10 ** (-every[name]["psnr"] / 10) == pytest.approx(np.mean(errors), rel=1e-6)
    assert some["frames"] == 3
    for name, curve in some["frame_psnr"].items():
        assert curve == every["frame_psnr"][name][::5]
    assert sum(row["patches"] for row in some["chunks"]) * 4 == sum(row["patches"] for row in every["chunks"])


def test_vmaf_is_that_of_the_decoded_frames(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    from hf_efficient.video.play.decode import decode

    bundle = quick_bundle(tmp_path)
    ours = evaluate(bundle.path, tmp_path / "source.mp4", every=6, vmaf=True)["stdo"]["vmaf"]
    decoded, log = decode(bundle.path, tmp_path / "out.mkv", codec="ffv1"), tmp_path / "vmaf.json"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", decoded, "-i", tmp_path / "source.mp4", "-lavfi",
               f"libvmaf=log_fmt=json:log_path={log}", "-f", "null", "-"]  # fmt: skip
    subprocess.run(command, check=True)
    theirs = json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"]
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_vmaf_without_its_ffmpeg_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-efficient\[video\]'"):
        evaluate(quick_bundle(tmp_path).path, tmp_path / "source.mp4", vmaf=True)
