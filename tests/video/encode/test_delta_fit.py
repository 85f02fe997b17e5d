"""method="delta": never worse than its parts, every byte counted, its filter that of least squares."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_efficient.cli import main
from hf_efficient.video.encode.candidates import best
from hf_efficient.video.encode.filter import fit_filter
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.encode.patch_store import Pair
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.manifest import BundleError, sha256
from hf_efficient.video.networks.backbones.luma import bicubic, luma
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import FitSettings
from tests.video.bundles import QUICK, files, source_clip

SETTINGS = {**QUICK, "num_features": 8, "num_blocks": 2, "method": "delta", "lr_quality": 40}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("delta")
    return fit_video(source_clip(folder), folder / "bundle", **SETTINGS)


def test_the_filter_is_that_of_least_squares() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(1, 3, 14, 12), torch.rand(1, 3, 28, 24)
    net = fit_filter([Pair(x, y)], 2)
    padded = np.pad(luma(x)[0, 0].double().numpy() - 0.5, 2, mode="edge")
    rows = [[*padded[i : i + 5, j : j + 5].ravel(), 1.0] for i in range(14) for j in range(12)]
    replicated = torch.nn.functional.pad(x, [2] * 4, mode="replicate")
    left = (luma(y) - luma(bicubic(replicated, 2, trim=True)))[0, 0].double().numpy()
    for n in range(4):
        target = left[n // 2 :: 2, n % 2 :: 2].ravel()
        expected = np.linalg.lstsq(np.array(rows), target, rcond=None)[0]
        found = [*net.skip.weight[n].flatten().tolist(), float(net.skip.bias[n])]  # type: ignore[index]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_no_part_has_less_error_for_its_bytes(fitted: Bundle) -> None:
    record, stream = fitted.manifest["candidates"], fitted.low_resolution.stat().st_size
    error = {row["name"]: 10 ** (-row["psnr_luma"] / 10) for row in record["rows"]}
    cost = {row["name"]: error[row["name"]] + error["bicubic"] * row["bytes"] / stream for row in record["rows"]}
    assert set(cost) == {"bicubic", "filter", "general", "scales", "delta"}
    assert cost[record["taken"]] == pytest.approx(min(cost.values()), rel=1e-4)


def test_what_is_said_of_the_fit_is_not_said_of_what_is_sent(
    fitted: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another part than the delta may be taken: its decibels are those of its own line."""
    card = (fitted.path / "README.md").read_text()
    assert f"dB by the delta that was trained (sent: {fitted.manifest['candidates']['taken']})" in card
    assert main(["stdo", "info", str(fitted.path)]) == 0
    told = capsys.readouterr().out
    assert "as stored" not in card + told
    assert re.search(r"^fitted +\d+ patches", told, re.MULTILINE)


def test_the_best_is_the_least_of_error_and_price() -> None:
    rows = [{"name": "bicubic", "error": 1.0, "bytes": 0}, {"name": "a", "error": 0.8, "bytes": 100},
            {"name": "b", "error": 0.7, "bytes": 250}]  # fmt: skip
    assert [best(rows, size) for size in (300, 1000, 10_000)] == [0, 1, 2]


def test_every_byte_that_a_player_needs_is_counted(fitted: Bundle) -> None:
    needed = {name: len(content) for name, content in files(fitted.path).items()}
    for name in ("README.md", "fit.json", "model_index.json"):
        needed.pop(name)
    assert fitted.sizes() == needed
    assert needed["bundle.json"] < 700
    assert needed["model/config.json"] < 200


def test_a_bundle_plays_without_the_record_of_its_fit(fitted: Bundle, tmp_path: Path) -> None:
    for name, content in files(fitted.path).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name in fitted.sizes():
            (tmp_path / name).write_bytes(content)
    played = [frame.rgb for frame in Player(tmp_path).frames(every=5)]
    assert all(map(np.array_equal, played, (frame.rgb for frame in Player(fitted).frames(every=5))))


def test_an_unknown_general_network_is_named(fitted: Bundle, tmp_path: Path) -> None:
    for name, content in files(fitted.path).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    config, manifest = tmp_path / "model/config.json", json.loads((tmp_path / "bundle.json").read_text())
    unknown = {"backbone": "luma_wdsr", "num_features": 8, "weight_dtype": "delta", "general": "f" * 32}
    config.write_text(json.dumps({"model_type": "stdo", **unknown}))
    manifest["files"]["model/config.json"] = {"bytes": config.stat().st_size, "sha256": sha256(config)}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="this package does not have"):
        Bundle.open(tmp_path)


@pytest.mark.slow
def test_a_killed_fit_makes_the_same_bundle(fitted: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    calls = 0

    def stop_often(count: int) -> None:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise Killed

    source, kills = fitted.path.parent / "source.mp4", 0
    while not (tmp_path / "bundle").exists():
        try:
            fit_video(source, tmp_path / "bundle", **SETTINGS, progress=stop_often)
        except Killed:
            kills += 1
        if kills > 30:
            monkeypatch.undo()
            break
    assert kills >= 1
    assert files(fit_video(source, tmp_path / "bundle", **SETTINGS).path) == files(fitted.path)


def test_what_a_general_network_decides_cannot_be_set() -> None:
    refused: list[tuple[str, Any]] = [("backbone", "edsr"), ("num_blocks", 3), ("weight_dtype", "int8")]
    for name, value in refused:
        with pytest.raises(
            ValueError, match=rf"{name}=.*Leave it out, or choose .* \('jstdo', 'stdo', 'single', 'time'\)"
        ):
            FitSettings(**{name: value})
    with pytest.raises(
        ValueError, match=r"num_features=4: .* expected at least 8, or a method that trains from scratch"
    ):
        FitSettings(num_features=4)
    assert FitSettings().network(0).num_features == 8
    assert FitSettings(num_features=8).network(0).backbone == "luma_wdsr"
