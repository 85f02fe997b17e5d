"""Deltas by scene: cuts are found, the choice is the cheapest of all, every byte counts, players follow the map."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_efficient import STDOPipeline
from hf_efficient.cli import main
from hf_efficient.video.encode import delta_fit, scene_fit
from hf_efficient.video.encode.candidates import best
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.encode.scenes import Offers, changes, cheapest_ways, frames_of, sampled_frames, scene_starts
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import read_frames
from hf_efficient.video.networks.experts import load_config, load_experts
from hf_efficient.video.networks.inference import enlarge_whole
from hf_efficient.video.patches import to_rgb8, to_tensor
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import FitSettings
from tests.video.bundles import QUICK, files, three_scenes

SETTINGS = {**QUICK, "method": "delta", "num_features": 8, "num_blocks": 2, "lr_quality": 40, "scenes": 3}
CUTS = [0, 8, 16]
OWN, BEFORE = 3, 4


def test_scenes_start_where_shots_were_joined(tmp_path: Path) -> None:
    frames = [to_tensor(frame.rgb) for frame in read_frames(three_scenes(tmp_path / "source.mp4"))]
    change = changes(frames)
    assert scene_starts(change, 250) == CUTS
    assert scene_starts(change, 2) == [0, int(change.argmax())]
    assert scene_starts(change, 1) == [0]
    assert scene_starts(changes(frames[:8]), 250) == [0]


def test_a_flicker_that_lasts_is_no_cut() -> None:
    change = np.zeros(40)
    change[20:24] = 0.2
    assert scene_starts(change, 9) == [0]
    change[21:] = 0
    assert scene_starts(change, 9) == [0, 20]
    assert scene_starts(np.full(1, 0.0), 9) == [0]


def test_samples_lie_in_their_scenes() -> None:
    starts, total = [0, 3, 40], 90
    assert frames_of(starts, total).tolist() == [0] * 3 + [1] * 37 + [2] * 50
    sampled = sampled_frames(starts, total, 4)
    assert [list(sampled.values()).count(scene) for scene in range(3)] == [3, 4, 4]
    assert all(frames_of(starts, total)[t] == scene for t, scene in sampled.items())


def cheapest_of_all(offers: Offers, price: float) -> float:
    """The least cost of every choice there is, one after the other, from the definition."""
    scenes, found = len(offers.shares), []
    for ways in product(range(5), repeat=scenes):
        if any(way == BEFORE and (s == 0 or ways[s - 1] != OWN) for s, way in enumerate(ways)):
            continue
        for delta_sent in (True, False):
            if not delta_sent and 2 in ways:
                continue
            error = rate = 0.0
            for s, way in enumerate(ways):
                error += offers.shares[s] * {OWN: offers.own[s], BEFORE: offers.before[s]}.get(
                    way, offers.common[min(way, 2)][s]
                )
                rate += (offers.over_bytes if delta_sent else offers.alone_bytes)[s] if way == OWN else 0
            rate += offers.common_bytes[1] * (1 in ways) + offers.common_bytes[2] * delta_sent
            found.append(error + price * rate)
    return min(found)


def test_the_choice_is_the_cheapest_of_all() -> None:
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(60):
        scenes = int(rng.integers(1, 5))
        over, before = rng.integers(10, 400, scenes), np.where(np.arange(scenes) == 0, np.inf, rng.random(scenes))
        offers = Offers(
            rng.random((3, scenes)), [0, *rng.integers(10, 500, 2).tolist()], rng.random(scenes) * 0.7,
            before, (over + rng.integers(-5, 300, scenes)).tolist(), over.tolist(), rng.dirichlet(np.ones(scenes)),
        )  # fmt: skip
        price = float(10 ** rng.uniform(-5, -2))
        ways, sent = cheapest_ways(offers, price)
        assert offers.cost(ways, sent, price) == pytest.approx(cheapest_of_all(offers, price))
        kinds |= set(ways)
    assert kinds == {0, 1, 2, OWN, BEFORE}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that sends the whole video's delta, and an own one for the first and the last scene."""
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_fit, "cheapest_ways", lambda *_: ([OWN, BEFORE, 2], (True, False, True)))
        patch.setattr(delta_fit, "best", lambda rows, *_: [row["name"] for row in rows].index("scenes"))
        return fit_video(three_scenes(folder / "source.mp4"), folder / "bundle", **{**SETTINGS, "learning_rate": 0.02})


def test_a_player_takes_the_network_of_each_scene(fitted: Bundle) -> None:
    config = load_config(fitted.model)
    nets, _ = load_experts(fitted.model, config)
    assert [len(nets), config.num_experts] == [2, 2]
    assert any(not torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert fitted.manifest["candidates"]["scenes"] == [
        {"frame": t, "by": by} for t, by in zip(CUTS, ("own", "before", "delta"), strict=True)
    ]
    player, source = Player(fitted), fitted.source
    pairs = zip(read_frames(fitted.low_resolution), player.frames(), strict=True)
    for t, (small, played) in enumerate(pairs):
        net = nets[1] if t < CUTS[2] else nets[0]  # the delta of the whole video is the first
        with torch.no_grad():
            large = enlarge_whole(net, player.specs[0], to_tensor(small.rgb))
        apart = to_rgb8(large)[: source.height, : source.width].astype(int) - played.rgb
        assert np.abs(apart).max() <= 1


def test_the_pipeline_and_an_export_play_the_scenes(fitted: Bundle, tmp_path: Path) -> None:
    played = [frame.rgb for frame in Player(fitted).frames()]
    (frames,) = STDOPipeline.from_pretrained(fitted.path)(output_type="pil", return_dict=False)
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(frames, played, strict=True))
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from hf_efficient.video.export.export import export_bundle
    from hf_efficient.video.export.player import OnnxPlayer

    export_bundle(fitted.path, tmp_path / "onnx", "onnx", None)
    exported = (frame.rgb for frame in OnnxPlayer(tmp_path / "onnx", threads=1).frames())
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(exported, played, strict=True)) <= 1


def test_info_lists_what_the_scenes_took(fitted: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stdo", "info", str(fitted.path)]) == 0
    assert "scenes      from frame 0 own, from frame 8 before, from frame 16 delta" in capsys.readouterr().out


def test_every_byte_of_the_scenes_is_counted(fitted: Bundle) -> None:
    record = fitted.manifest["candidates"]
    row = next(row for row in record["rows"] if row["name"] == "scenes")
    assert row["bytes"] == sum(path.stat().st_size for path in fitted.model.iterdir())
    needed = {name: len(content) for name, content in files(fitted.path).items()}
    assert fitted.sizes() == {name: needed[name] for name in fitted.sizes()}
    assert len(fitted.manifest["experts"]) == 2


def test_scenes_that_do_not_pay_are_not_sent(tmp_path: Path) -> None:
    bundle = fit_video(three_scenes(tmp_path / "source.mp4"), tmp_path / "bundle", **SETTINGS)
    record, stream = bundle.manifest["candidates"], bundle.low_resolution.stat().st_size
    rows = [{**row, "error": 10 ** (-row["psnr_luma"] / 10)} for row in record["rows"]]
    assert record["taken"] == rows[best(rows, stream)]["name"]
    assert record["taken"] != "scenes"


def test_only_a_delta_has_scenes() -> None:
    with pytest.raises(ValueError, match="scenes=3: a delta for each scene needs method='delta', not 'jstdo'"):
        FitSettings(method="jstdo", scenes=3)
    with pytest.raises(ValueError, match="scenes=251 is out of range; expected a whole number from 1 to 250"):
        FitSettings(scenes=251)


@pytest.mark.slow
def test_a_killed_fit_of_scenes_makes_the_same_bundle(fitted: Bundle, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    calls = 0

    def stop_often(count: int) -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 0 and calls < 150:
            raise Killed

    settings: dict[str, Any] = {**SETTINGS, "learning_rate": 0.02}
    source, kills = fitted.path.parent / "source.mp4", 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_fit, "cheapest_ways", lambda *_: ([OWN, BEFORE, 2], (True, False, True)))
        patch.setattr(delta_fit, "best", lambda rows, *_: [row["name"] for row in rows].index("scenes"))
        while not (tmp_path / "bundle").exists():
            try:
                fit_video(source, tmp_path / "bundle", **settings, progress=stop_often)
            except Killed:
                kills += 1
    assert kills >= 5
    assert files(tmp_path / "bundle") == files(fitted.path)
