"""Every option acts or is refused, in the words of the shell, before any work."""

from pathlib import Path
from typing import Any

import pytest

from hf_efficient import TokenPrunerConfig
from hf_efficient.cli import build_parser, main, pruner_settings
from tests.cli.shell import error_of


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("demo --budgets 0", "demo: error: --budgets 0 keeps nothing"),
        ("demo --budgets 4 64.0", "Write --budgets 64 to keep that many tokens."),
        ("demo --budgets 3 --llm-budget 0", "--llm-budget 0 keeps nothing"),
        ("stdo encode {tmp}/file {tmp}/b --budget nonsense", "--budget nonsense is not a bit rate"),
        ("stdo encode {tmp}/file {tmp}/b --budget=", "--budget '' is not a bit rate"),
        ("stdo encode {tmp}/file {tmp}/b --threads 99999999999", "'99999999999' is not a whole number from 1 to 1024"),
        ("stdo encode {tmp}/file {tmp}/b --device meta", "--device meta is not available here"),
        ("stdo encode {tmp}/file /", "'/' cannot be an output: give the folder a name"),
        ("stdo compare {tmp} {tmp}/file --codecs h264", "choose from 'libx264', 'libx265', 'libsvtav1'"),
        ("stdo info {tmp} --device cuda", "stdo info: error: unrecognized arguments: --device cuda"),
        ("stdo info {tmp} --threads 2", "(see hf-efficient stdo info --help)"),
        ("prune a b c", "prune: error: unrecognized arguments: c (see hf-efficient prune --help)"),
        ("env --budget 3", "env: error: unrecognized arguments: --budget 3 (see hf-efficient env --help)"),
        ("prune ~/gone {tmp}/out", "'~/gone' is missing: there is no such folder (~ is a shortcut of the shell alone"),
        ("prune {tmp}/file {tmp}/out", "file' is not a folder: give the folder that holds it"),
        ("prune --model= {tmp}/out", "prune: error"),
    ],
)
def test_mistakes_are_told_by_the_option(
    command: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no video")
    assert told in error_of(capsys, *command.format(tmp=tmp_path).split())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("arguments", [["stdo", "encode", "{tmp}/file", ""], ["prune", "", "{tmp}/out"]])
def test_an_empty_name_is_told_without_python(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no video")
    monkeypatch.chdir(tmp_path)
    error = error_of(capsys, *[a.format(tmp=tmp_path) for a in arguments])
    assert "PosixPath" not in error
    assert "give the folder a name" in error or "'' is missing" in error


@pytest.mark.parametrize("action", ["evaluate", "compare"])
def test_an_error_is_all_that_is_on_stderr(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No bar of work that did not begin."""
    assert main(["stdo", action, str(tmp_path), "video.mp4"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("action", ["evaluate", "compare"])
def test_the_device_reaches_the_networks(action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_efficient.video.files import bundle
    from hf_efficient.video.measure import evaluation

    class Opened:
        def probe_source(self, source: Path) -> None:
            """It is the one."""

    asked: dict[str, Any] = {}

    def measure(*_: object, **given: Any) -> None:
        asked.update(given)
        raise ValueError("enough")

    monkeypatch.setattr(bundle.Bundle, "open", lambda *_: Opened())
    monkeypatch.setattr(evaluation, "evaluate", measure)
    assert main(["stdo", action, str(tmp_path), "video.mp4", "--device", "cuda:1"]) == 2
    assert asked["device"] == "cuda:1"


def test_abbreviations_and_repeated_options_mean_what_they_say() -> None:
    parsed = build_parser().parse_args(["prune", "a", "b", "--budget", "3", "--lloyd", "2", "--budget=0.5"])
    assert (parsed.budget, parsed.lloyd_steps) == (0.5, 2)


def test_numbers_of_settings_that_are_left_open_arrive_as_numbers() -> None:
    said = ["--coverage-mix", "0.25", "--coverage-power", "2", "--proportional-attention", "yes"]
    settings = pruner_settings(build_parser().parse_args(["prune", "a", "b", *said]))
    expected = TokenPrunerConfig(coverage_mix=0.25, coverage_power=2.0, proportional_attention=True)
    assert TokenPrunerConfig.from_dict(settings) == expected
    assert pruner_settings(build_parser().parse_args(["prune", "a", "b"])) == {}
