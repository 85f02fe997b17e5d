"""What the commands write: whole, or not; and nothing of the user's is replaced."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from hf_efficient.cli import main
from hf_efficient.representation.evaluation.questions import load_vlm
from tests.files.disks import no_room, small_disk
from tests.files.kills import killed_before
from tests.scene_vlm import make_scenes
from tests.video.bundles import files, quick_bundle


def prune(vlm: Path, output: Path) -> int:
    return main(["prune", str(vlm), str(output), "--budget", "3"])


def is_whole(folder: Path, vlm: Path) -> bool:
    model, _ = load_vlm(folder)
    return {*os.listdir(vlm), "README.md", "token_pruner_config.json"} == set(os.listdir(folder)) and model is not None


def test_prune_gives_files_the_modes_of_the_umask(vlm: Path, tmp_path: Path) -> None:
    assert prune(vlm, tmp_path / "out") == 0
    assert is_whole(tmp_path / "out", vlm)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}
    assert os.listdir(tmp_path) == ["out"]


def check_kill(vlm: Path, folder: Path, step: int) -> bool:
    folder.mkdir()
    killed = killed_before(step, partial(prune, vlm, folder / "out"))
    assert not (folder / "out").exists() or is_whole(folder / "out", vlm)
    if not (folder / "out").exists():
        assert prune(vlm, folder / "out") == 0
        assert is_whole(folder / "out", vlm)
    assert [name for name in os.listdir(folder) if name != ".out.lock"] == ["out"]
    return killed


@pytest.mark.parametrize("step", [8, 16])
def test_a_kill_leaves_all_or_nothing(vlm: Path, tmp_path: Path, step: int) -> None:
    assert check_kill(vlm, tmp_path / "x", step)


@pytest.mark.slow
def test_a_kill_before_any_step_leaves_all_or_nothing(vlm: Path, tmp_path: Path) -> None:
    step = 0
    while check_kill(vlm, tmp_path / str(step), step):
        step += 1
    assert step > 20


@pytest.mark.parametrize("size", [100, 20_000])
def test_no_room_leaves_nothing(vlm: Path, tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    with no_room(size):
        assert prune(vlm, tmp_path / "out") == 2
    assert "out' cannot be written: " in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1_000_000 * n for n in range(1, 14)])
def test_a_full_disk_leaves_all_or_nothing(
    vlm: Path, tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        if prune(vlm, disk / "out"):
            assert "out' cannot be written: no space is left" in capsys.readouterr().err
            assert not os.listdir(disk)
        else:
            assert is_whole(disk / "out", vlm)


def test_prune_refuses_before_it_loads(vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.cli.prune.load_vlm", lambda *_: pytest.fail("it was loaded"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    before = files(tmp_path)
    for name in ("used", "file", "link", "file/x"):
        assert prune(vlm, tmp_path / name) == 2
    assert prune(vlm, vlm) == 2
    assert files(tmp_path) == before


def test_results_replace_results_alone(
    tmp_path: Path, vlm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = make_scenes(tmp_path / "set", scenes=2)
    run = ["demo", "--model", str(vlm), "--data", str(scenes), "--scenes", "2", "--draw", "1", "--budgets", "3",
           "--output", str(tmp_path / "out")]  # fmt: skip
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")  # other files do no harm
    assert main(run) == 0
    assert main(run) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["kept_tokens_00.png", "notes.txt", "results.json"]
    (tmp_path / "out" / "results.json").write_text(json.dumps({"accuracy": 0.93}))
    monkeypatch.setattr("hf_efficient.cli.demo.load_vlm", lambda *_: pytest.fail("it was loaded"))
    before = files(tmp_path / "out")
    assert main(run) == 2
    (tmp_path / "out" / "results.json").unlink()
    assert main(run) == 2
    assert "was not written by this command" in capsys.readouterr().err
    before.pop("results.json")
    assert files(tmp_path / "out") == before


def test_an_evaluation_replaces_evaluations_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = quick_bundle(tmp_path, steps=2).path
    run = ["stdo", "evaluate", str(bundle), str(tmp_path / "source.mp4"), "--output"]
    assert main([*run, str(tmp_path / "out")]) == 0
    assert main([*run, str(tmp_path / "out")]) == 0
    before = files(tmp_path)
    assert main([*run, str(bundle)]) == 2
    assert "lies inside" in capsys.readouterr().err
    (tmp_path / "evaluation.png").write_text("mine")
    assert main([*run, str(tmp_path)]) == 2
    assert files(tmp_path) == {**before, "evaluation.png": b"mine"}


def test_encode_looks_at_its_output_before_it_looks_for_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_efficient.video.encode.budget.spend", lambda *_: pytest.fail("it was looked for"))
    bundle = quick_bundle(tmp_path, steps=2).path
    (tmp_path / "file").write_text("mine")
    for output, overwrite in ((bundle, []), (tmp_path / "file", ["--overwrite"]), (tmp_path, ["--overwrite"])):
        source = tmp_path / "source.mp4"
        assert main(["stdo", "encode", str(source), str(output), "--budget", "300k", *overwrite]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["stdo", "decode", str(bundle), str(bundle / "out.mp4")]) == 2
