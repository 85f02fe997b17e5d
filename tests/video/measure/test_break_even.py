"""A bundle that is worse than doing nothing is said, with figures that are measured again here."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.utils import logging

from hf_efficient.cli import main
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import read_frames
from hf_efficient.video.measure.break_even import total_bytes, verdicts
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.patches import to_rgb8, to_tensor
from hf_efficient.video.play.player import Player
from tests.video.bundles import QUICK
from tests.video.clips import make_clip, moving_frames


@pytest.fixture(autouse=True)
def _warnings_reach_the_test(caplog: pytest.LogCaptureFixture) -> Any:
    logging.enable_propagation()
    yield
    logging.disable_propagation()


def pooled(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    errors = [np.square((x.astype(float) - y) / 255).mean() for x, y in zip(a, b, strict=True)]
    return float(-10 * np.log10(np.mean(errors)))


def test_a_bundle_larger_than_its_source_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(12, 96, 80), options={"crf": "40"})
    bundle = fit_video(source, tmp_path / "bundle", **{**QUICK, "num_features": 16})
    total = sum(f.stat().st_size for f in bundle.path.rglob("*") if f.is_file())
    assert total > source.stat().st_size
    sentence = rf"This bundle's folder has {total:,} bytes, [\d.]+ times its source's {source.stat().st_size:,}"
    assert re.search(sentence, caplog.text)
    assert re.search(sentence, (bundle.path / "README.md").read_text())
    assert "the networks alone take" in caplog.records[0].message  # before the work
    capsys.readouterr()
    assert main(["stdo", "info", str(bundle.path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(f"warning: {sentence}", printed)
    assert f"{total:,} in the folder, with what no player needs" in printed


def test_the_comparison_with_bicubic_is_measured_on_frames(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(10, 96, 80))
    bundle = fit_video(source, tmp_path / "bundle", **{**QUICK, "method": "stdo", "num_chunks": 2})
    truth = [frame.rgb for frame in read_frames(source)]
    played = [frame.rgb for frame in Player(bundle).frames()]
    small = [to_tensor(frame.rgb) for frame in read_frames(bundle.low_resolution)]
    compared = bundle.manifest["compared"]
    assert compared["frames"] == 10
    assert compared["psnr"] == pytest.approx(pooled(played, truth), abs=1e-3)
    assert compared["psnr_bicubic"] == pytest.approx(
        pooled([to_rgb8(upsample_bicubic(x, 2)) for x in small], truth), abs=1e-3
    )


def test_a_bundle_worse_than_bicubic_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(8, 96, 80), options={"crf": "1"})
    settings = {**QUICK, "backbone": "espcn", "steps": 2}  # starts from nothing
    bundle = fit_video(source, tmp_path / "bundle", **settings)
    compared = bundle.manifest["compared"]
    assert compared["psnr"] < compared["psnr_bicubic"]
    sentence = f"worse than bicubic enlargement of its own stream: {compared['psnr']:.2f} dB against"
    assert sentence in caplog.text
    assert sentence in (bundle.path / "README.md").read_text()
    capsys.readouterr()
    assert main(["stdo", "info", str(bundle.path)]) == 0
    assert sentence in capsys.readouterr().out


def test_a_bundle_that_is_worth_it_is_not_scolded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(24, 192, 160), options={"qp": "0"})
    bundle = fit_video(source, tmp_path / "bundle", **{**QUICK, "steps": 200, "batch_size": 8})
    assert verdicts(bundle.manifest, total_bytes(bundle.path)) == []
    assert caplog.text == ""
    assert "**This bundle" not in (bundle.path / "README.md").read_text()


def test_a_single_image_is_said_before_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(moving_frames(1, 96, 80)[0]).save(tmp_path / "a.png")

    def stop(*_: Any) -> None:
        raise RuntimeError("the work begins")

    monkeypatch.setattr("hf_efficient.video.encode.fit.Fit.make_low_resolution", stop)
    with pytest.raises(RuntimeError, match="the work begins"):
        fit_video(tmp_path / "a.png", tmp_path / "bundle", **{**QUICK, "steps": 1500})
    assert "is a single image, and 1500 steps" in caplog.text


def test_verdicts_count_and_compare() -> None:
    manifest: dict[str, Any] = {"source": {"bytes": 100}, "compared": {"frames": 3, "psnr": 30.0, "psnr_bicubic": 29.0}}
    assert verdicts(manifest, 99) == []
    assert "100 bytes, 1.00 times" in verdicts(manifest, 100)[0]
    manifest["compared"]["psnr"] = 28.5
    assert "28.50 dB against 29.00 on 3 frames" in verdicts(manifest, 99)[0]
    assert verdicts({"source": {"bytes": 100}}, 99) == []  # a bundle that nobody compared


def test_bundle_without_comparison_opens(tmp_path: Path) -> None:
    import json

    bundle = fit_video(make_clip(tmp_path / "a.mp4", moving_frames(4, 96, 80)), tmp_path / "bundle", **QUICK)
    path = bundle.path / "bundle.json"
    values = json.loads(path.read_text())
    del values["compared"], values["source"]["side"]
    path.write_text(json.dumps(values))
    assert Bundle.open(bundle.path).source == bundle.source
    path.write_text(json.dumps({**values, "compared": {"frames": 0}}))
    with pytest.raises(ValueError, match="compared"):
        Bundle.open(bundle.path)
