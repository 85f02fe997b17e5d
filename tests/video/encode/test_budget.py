"""A bit rate is spent on the best that fits, a codec alone included."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient.video.encode import budget
from hf_efficient.video.encode.budget import spend
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.encode.low_resolution import back_projection
from hf_efficient.video.files.reader import probe
from hf_efficient.video.measure.rate_distortion import encode_at_quality
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.networks.backbones.luma import luma_error
from hf_efficient.video.patches import Geometry, degrade
from tests.video.bundles import source_clip

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
    monkeypatch.setattr(budget, "full_size", lambda *_: iter(()))
    source = source_clip(tmp_path)
    settings = spend(source, 3e5, tmp_path / "plain.mkv", GIVEN, lambda _: None)
    assert settings is not None
    assert settings.method == "delta"
    bundle = fit_video(source, tmp_path / "bundle", settings=settings, progress_bar=False, device="cpu")
    assert bundle.kilobits <= 300
    assert not (tmp_path / "plain.mkv").exists()
    with pytest.raises(ValueError, match="too few"):
        spend(source, 2e3, tmp_path / "plain.mkv", GIVEN, lambda _: None)


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
