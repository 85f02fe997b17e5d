"""What a bit rate becomes: against trying everything."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.encode.low_resolution import downscaled, write_stream
from hf_efficient.video.encode.rate_control import (
    HEADER_BYTES,
    NETWORK_SHARE,
    bytes_at,
    network_bytes,
    parse_rate,
    settings_for_rate,
    written_rate,
)
from hf_efficient.video.files.reader import probe, read_frames
from hf_efficient.video.methods.stdo import choose_num_chunks
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.patches import Geometry, to_rgb8, to_tensor
from hf_efficient.video.settings import FitSettings
from tests.video.bundles import QUICK, source_clip, started

GIVEN: dict[str, Any] = {k: QUICK[k] for k in ("method", "num_blocks", "steps", "batch_size", "lr_preset")}
GIVEN["lr_codec"] = "libx264"


def everything(source: Path, folder: Path, scale: int) -> dict[int, tuple[int, float]]:
    """crf -> bytes of the stream, and dB of its bicubic enlargement over all frames."""
    info = probe(source)
    settings = FitSettings(scale=scale, **GIVEN)
    geometry = Geometry.choose(info.width, info.height, scale)
    small, found = list(downscaled(read_frames(source), geometry)), {}
    for crf in range(1, 52, 3):
        path = folder / f"{scale}-{crf}.mp4"
        write_stream(source, info, small, geometry, replace(settings, lr_quality=crf), path)
        errors = [
            np.square(to_rgb8(upsample_bicubic(to_tensor(a.rgb), scale))[: info.height, : info.width] / 255.0
                      - b.rgb / 255.0).mean()
            for a, b in zip(read_frames(path), read_frames(source), strict=True)
        ]  # fmt: skip
        found[crf] = path.stat().st_size, -10 * np.log10(np.mean(errors))
    return found


@pytest.mark.parametrize("rate", [250e3, 320e3, 700e3])
def test_the_scale_is_the_one_nearest_to_the_source(tmp_path: Path, rate: float) -> None:
    source = source_clip(tmp_path)
    said: list[str] = []
    chosen = settings_for_rate(source, rate, GIVEN, said.append)
    total = int(rate * probe(source).seconds / 8)
    best: dict[float, float] = {}
    for scale in (2, 3, 4):
        size = network_bytes(replace(chosen, scale=scale, num_features=4))
        fits = [q for b, q in everything(source, tmp_path, scale).values() if b + size + HEADER_BYTES <= total]
        if fits:
            best[scale] = max(fits)
    assert best[chosen.scale] > max(best.values()) - 0.3  # every third quality was tried
    assert [line[:2] for line in said].count("->") == 1
    bundle = fit_video(source, tmp_path / "bundle", settings=chosen, progress_bar=False, device="cpu")
    assert sum(bundle.sizes().values()) <= total


def test_each_quality_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # (scale, crf) -> bytes; crf 0 is the lossless one that the others are made of
    sizes: dict[tuple[float, int], int] = {}

    def counted(source: Path, info: Any, frames: Any, geometry: Any, settings: FitSettings, target: Path) -> None:
        write_stream(source, info, frames, geometry, settings, target)
        key = settings.scale, settings.lr_quality
        assert key not in sizes
        sizes[key] = target.stat().st_size

    monkeypatch.setattr("hf_efficient.video.encode.rate_control.write_stream", counted)
    source = source_clip(tmp_path)
    chosen = settings_for_rate(source, 4e5, GIVEN, lambda _: None)
    for scale in (2, 3, 4):
        assert 2 <= sum(s == scale for s, _ in sizes) <= 7  # a range of 51 is halved six times
    left = 4e5 * probe(source).seconds / 8 - network_bytes(chosen) - HEADER_BYTES
    assert sizes[chosen.scale, chosen.lr_quality] <= left < sizes[chosen.scale, chosen.lr_quality - 1]


def test_what_is_given_stays(tmp_path: Path) -> None:
    source = source_clip(tmp_path)
    chosen = settings_for_rate(
        source, 6e5, {**GIVEN, "scale": 3, "num_features": 5, "weight_dtype": "float16"}, lambda _: None
    )
    assert (chosen.scale, chosen.num_features, chosen.weight_dtype, chosen.method) == (3, 5, "float16", "jstdo")
    wide = settings_for_rate(source, 2e6, {**GIVEN, "scale": 3}, lambda _: None)
    assert isinstance(wide.num_features, int)
    share = NETWORK_SHARE * 2e6 * probe(source).seconds / 8
    assert network_bytes(wide) <= share < network_bytes(replace(wide, num_features=wide.num_features + 8))


def test_what_the_benchmark_found_best_is_chosen(tmp_path: Path) -> None:
    chosen = settings_for_rate(source_clip(tmp_path), 6e5, {"scale": 2, "lr_preset": "12"}, lambda _: None)
    assert (chosen.lr_codec, chosen.weight_dtype, chosen.method) == ("libsvtav1", "int8", "jstdo")


def test_the_number_of_networks_follows_the_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.video.methods.stdo.STEPS_EACH", 1)  # else so short a training has one network
    given = {**GIVEN, "scale": 2, "method": "stdo"}
    chosen = settings_for_rate(source_clip(tmp_path), 6e5, given, lambda _: None)
    errors = started(tmp_path / "fit", scale=2, lr_quality=0).plan.errors.ravel()
    assert chosen.num_chunks == choose_num_chunks(errors, chosen.steps)
    bundle = fit_video(tmp_path / "source.mp4", tmp_path / "b", settings=chosen, progress_bar=False, device="cpu")
    assert sum(bundle.sizes().values()) * 8 / bundle.source.seconds <= 6e5


def test_too_little_is_said_for_every_scale(tmp_path: Path) -> None:
    source = source_clip(tmp_path)
    with pytest.raises(ValueError, match=r"too few.*at x2 .*at x3 .*at x4 .*Give [\d.]+kbps or more") as refused:
        settings_for_rate(source, 5000, GIVEN)
    enough = parse_rate(str(refused.value).split()[-3])
    settings_for_rate(source, enough, GIVEN, lambda _: None)
    with pytest.raises(ValueError, match="too few"):
        settings_for_rate(source, enough - 200, GIVEN)
    assert [p.name for p in tmp_path.iterdir()] == ["source.mp4"]


@pytest.mark.parametrize(
    ("total", "seconds"),
    [
        (2072170, 24.4),  # 679.4 kbit/s by the quotient, whose product with the seconds is a byte less, in floats
        (806400, 1001 / 30000),  # 193,342.6 kbit/s have seven digits
        (1_000_000_000, 2.0),  # 4,000,000 are written without an exponent
        (1250, 1.0),
    ],
)
def test_the_rate_that_an_error_names_suffices(total: int, seconds: float) -> None:
    """Given back as it is written it buys the bytes, and at most two tenths of a kilobit more."""
    rate = parse_rate(written_rate(total, seconds))
    assert total <= bytes_at(rate, seconds) <= total + 200 * seconds / 8
