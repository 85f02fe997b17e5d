"""A bit rate is spent on the best that fits, a codec alone included."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_efficient.video.codecs import CODECS
from hf_efficient.video.encode import budget
from hf_efficient.video.encode.budget import spend
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.encode.low_resolution import back_projection, downscaled, write_stream
from hf_efficient.video.encode.rate_control import parse_rate
from hf_efficient.video.files.containers import MediaError
from hf_efficient.video.files.reader import probe, read_frames
from hf_efficient.video.measure.rate_distortion import encode_at_quality, encode_at_size
from hf_efficient.video.measure.vmaf import vmaf_of_file
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.networks.backbones.luma import LUMA, luma_error
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.inference import enlarge
from hf_efficient.video.patches import Geometry, degrade, to_rgb8, to_tensor
from hf_efficient.video.settings import FitSettings
from tests.video.bundles import QUICK, source_clip
from tests.video.clips import make_clip, moving_frames

GIVEN: dict[str, Any] = {"scale": 2, "steps": 4, "batch_size": 2, "max_patches": 16, "lr_codec": "libx264",
                         "lr_preset": "ultrafast"}  # fmt: skip


def test_a_codec_alone_is_written_where_it_is_best(tmp_path: Path) -> None:
    source = source_clip(tmp_path)
    said: list[str] = []
    assert spend(source, 8e5, tmp_path / "plain.mkv", GIVEN, said.append) is None
    assert (tmp_path / "plain.mkv").stat().st_size * 8 / probe(source).seconds <= 8e5
    assert [line[:2] for line in said].count("->") == 1
    assert next(line for line in said if line.startswith("->")).startswith("-> libx264 alone")


@pytest.mark.slow
def test_a_bundle_keeps_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "full_size", lambda *_: 10**9)
    source = source_clip(tmp_path)
    settings = spend(source, 3e5, tmp_path / "plain.mkv", GIVEN, lambda _: None)
    assert settings is not None
    assert settings.method == "delta"
    bundle = fit_video(source, tmp_path / "bundle", settings=settings, progress_bar=False, device="cpu")
    assert bundle.kilobits <= 300
    assert not (tmp_path / "plain.mkv").exists()
    with pytest.raises(ValueError, match=r"too few .* Give [\d.]+kbps or more") as refused:
        spend(source, 2e3, tmp_path / "plain.mkv", GIVEN, lambda _: None)
    enough = parse_rate(str(refused.value).split()[-3])
    spend(source, enough, tmp_path / "plain.mkv", GIVEN, lambda _: None)
    with pytest.raises(ValueError, match="too few"):
        spend(source, enough - 200, tmp_path / "plain.mkv", GIVEN, lambda _: None)


Point = tuple[str, int, int, float]


@pytest.fixture(scope="module")
def every_point(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Point]]:
    """A clip, and of every quality of two codecs, alone and small, name, bytes, bytes to keep free, and dB of luma."""
    folder, found = tmp_path_factory.mktemp("points"), []
    source = make_clip(folder / "source.mp4", moving_frames(20, 192, 160))  # x265 fails on smaller ones
    info, geometry, general = probe(source), Geometry.choose(192, 160, 2), general_network(2, 8)
    truth, net = np.stack([frame.rgb for frame in read_frames(source)]).astype(float), general.load()

    def luma_psnr(frames: list[np.ndarray]) -> float:
        sampled = slice(None, None, 2)  # 20 frames, at most 16 samples
        error = (np.stack(frames).astype(float)[sampled] - truth[sampled]) / 255 @ np.array(LUMA)
        return float(-10 * np.log10(np.square(error).mean()))

    for codec in ("libx264", "libx265"):
        for quality in range(1, CODECS[codec].worst + 1):
            alone, stream = folder / f"{codec}-{quality}.mkv", folder / f"{codec}-{quality}-small.mp4"
            settings = FitSettings(lr_codec=codec, lr_quality=quality, lr_preset="ultrafast")
            size, _ = encode_at_quality(source, info, alone, codec, quality)
            found.append((f"{codec} alone", size, 0, luma_psnr([frame.rgb for frame in read_frames(alone)])))
            write_stream(source, info, downscaled(read_frames(source), geometry), geometry, settings, stream)
            frames = [to_tensor(frame.rgb) for frame in read_frames(stream)]
            large = [enlarge([net], [general.spec], frame, None, (1, 1))[..., :160, :192] for frame in frames]
            size, name = stream.stat().st_size, f"x2 by the general network, {codec}"
            found.append((name, size, 1000, luma_psnr([to_rgb8(frame) for frame in large])))
    return source, found


def test_a_codec_is_not_given_frames_that_it_cannot_bear(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "source.mp4", moving_frames(8, 96, 80))
    said: list[str] = []
    spend(source, 2e5, tmp_path / "plain.mkv", {"lr_preset": "ultrafast"}, said.append, codecs=("libx264", "libx265"))
    assert any("x2 by the general network, libx264" in line for line in said)  # 48 pixels across
    assert any("libx265 alone" in line for line in said)
    assert [line for line in said if "network, libx265" in line] == [s for s in said if "x1.5" in s and "libx265" in s]
    with pytest.raises(MediaError, match="48 pixels across; libx265 is given 64 or more"):
        fit_video(source, tmp_path / "bundle", **{**QUICK, "lr_codec": "libx265"})
    assert {path.name for path in tmp_path.iterdir()} <= {"source.mp4", "plain.mkv", "bundle.partial"}


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8e4, 1.5e5, 2.5e5])
def test_the_walk_finds_the_best_of_all_points(
    every_point: tuple[Path, list[Point]], tmp_path: Path, rate: float
) -> None:
    source, points = every_point
    total, fitting = int(rate * 0.8 / 8), dict[str, float]()
    for name, size, free, quality in points:
        if size <= total - free - (int(0.04 * total) if free else 0):
            fitting[name] = max(fitting.get(name, 0.0), quality)
    given, said = {"scale": 2, "lr_preset": "ultrafast"}, list[str]()
    chosen = spend(source, rate, tmp_path / "plain.mkv", given, said.append, codecs=("libx264", "libx265"))
    assert len(said) == len(fitting)
    for line in said:
        name = next(name for name in fitting if name in line)
        assert float(line.split()[-4]) == pytest.approx(fitting[name], abs=0.011)
    best = max(fitting, key=fitting.__getitem__)
    assert best in next(line for line in said if line.startswith("->"))
    assert (chosen is None) == best.endswith("alone")


@pytest.mark.slow
def test_vmaf_decides_where_it_is_asked_to(tmp_path: Path) -> None:
    source = source_clip(tmp_path)
    said: list[str] = []
    given = {**GIVEN, "lr_preset": "medium"}
    spend(source, 4e5, tmp_path / "plain.mkv", given, said.append, optimize="vmaf")
    values = {line[3:]: float(line.split()[-2]) for line in said}
    assert len(said) == 2
    assert all(line.endswith(" VMAF") for line in said)
    assert said[list(values.values()).index(max(values.values()))].startswith("->")
    encode_at_size(source, probe(source), tmp_path / "alone.mkv", "libx264", int(4e5 * probe(source).seconds / 8))
    assert list(values.values())[1] == pytest.approx(vmaf_of_file(tmp_path / "alone.mkv", source)["vmaf"], abs=0.006)


def test_what_cannot_be_walked_is_named(tmp_path: Path) -> None:
    source = source_clip(tmp_path)
    with pytest.raises(ValueError, match=r"optimize='ssim'.*'psnr' or 'vmaf'|optimize='ssim'"):
        spend(source, 1e5, tmp_path / "plain.mkv", optimize="ssim")
    with pytest.raises(ValueError, match="lr_preset='9' is known to none of libx264, libx265"):
        spend(source, 1e5, tmp_path / "plain.mkv", {"lr_preset": "9"}, codecs=("libx264", "libx265"))


def test_back_projected_frames_are_enlarged_to_what_is_nearer() -> None:
    torch.manual_seed(0)
    y, geometry, bicubic = torch.rand(1, 3, 32, 48), Geometry(48, 32, 2, 24, 16), partial(upsample_bicubic, scale=2)
    errors = [
        luma_error(bicubic(x), y)
        for x in (degrade(y, geometry), back_projection(y, geometry, bicubic))
    ]  # fmt: skip
    assert errors[1] < 0.98 * errors[0]


def test_av1_goes_below_the_rates_of_ffmpegs_largest_crf(tmp_path: Path) -> None:
    source = source_clip(tmp_path)
    sizes = [encode_at_quality(source, probe(source), tmp_path / f"{q}.mkv", "libsvtav1", q)[0] for q in (63, 70)]
    assert sizes[1] < sizes[0]
