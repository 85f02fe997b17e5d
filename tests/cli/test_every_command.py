"""What holds for every command: options that mean the same everywhere, examples, help, exit codes, completion."""

import argparse
import json
import shlex
from pathlib import Path

import pytest

from hf_efficient import TokenPrunerConfig
from hf_efficient.cli import build_parser, main
from hf_efficient.cli.examples import EXAMPLES, commands_of
from tests.cli.shell import error_of

ALL = dict(commands_of(build_parser()))
#: Commands that do something: not those that only have actions below them.
LEAVES = [name for name in ALL if not any(other.startswith(f"{name} ") for other in ALL)]
EVERYWHERE = ("--json", "--device", "--dtype", "--revision")
_NO_MODEL = dict.fromkeys(("--device", "--dtype", "--revision"), "it loads no model")
_BUNDLE = {"--dtype": "a bundle says the type of its weights", "--revision": "a bundle is a folder"}
#: Command -> the options of `EVERYWHERE` that make no sense with it, and why.
LACKS: dict[str, dict[str, str]] = {
    "prune": {"--device": "nothing is computed"},
    "serve": {"--json": "clients get JSON, and /metrics has the numbers"},
    "eval": {"--json": "lmms-eval writes its own, into --output"},
    "methods": _NO_MODEL,
    "doctor": _NO_MODEL,
    "env": _NO_MODEL,
    "completion": {"--json": "it prints a script", **_NO_MODEL},
    "stdo encode": _BUNDLE,
    "stdo decode": _BUNDLE,
    "stdo evaluate": _BUNDLE,
    "stdo compare": _BUNDLE,
    "stdo info": {**_BUNDLE, "--device": "nothing is computed"},
    "stdo export": {**_BUNDLE, "--device": "nothing is computed"},
}
WITH_JSON = [name for name in LEAVES if "--json" not in LACKS.get(name, {})]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def least_words(name: str) -> list[str]:
    """A command with all that it cannot do without."""
    words = name.split()
    for action in ALL[name]._actions:
        word = str(next(iter(action.choices))) if action.choices else "x=1"
        if not action.option_strings and action.nargs != "?":
            words.append(word)
        elif action.required:
            words += [action.option_strings[0], word]
    return words


@pytest.mark.parametrize("name", LEAVES)
def test_a_command_has_the_options_of_all_commands_or_a_reason(name: str) -> None:
    assert set(EVERYWHERE) - options_of(ALL[name]) == set(LACKS.get(name, {}))


def test_no_reason_is_left_over() -> None:
    assert set(LACKS) <= set(LEAVES)


@pytest.mark.parametrize("name", ALL)
def test_a_command_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    silent = [action.dest for action in ALL[name]._actions if not action.help]
    assert silent in ([], ["action"])  # the list of actions speaks for itself
    with pytest.raises(SystemExit) as exit:
        main([*name.split(), "--help"])
    assert exit.value.code == 0
    said = capsys.readouterr().out
    assert all(line in said for line in EXAMPLES[name])


def test_the_examples_are_understood() -> None:
    assert set(EXAMPLES) == set(ALL)
    for name, lines in EXAMPLES.items():
        for line in lines:
            if line.startswith("hf-efficient"):
                parsed = build_parser().parse_args(shlex.split(line)[1:])
                assert f"{parsed.command} {getattr(parsed, 'action', '')}".startswith(name)


@pytest.mark.parametrize("name", WITH_JSON)
def test_a_file_that_cannot_be_written_is_told_before_any_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nowhere" in error_of(capsys, *least_words(name), "--json", tmp_path / "nowhere" / "x.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", LEAVES)
def test_a_mistake_is_told_in_a_line_with_exit_code_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = error_of(capsys, *least_words(name), "--no-such-option")
    assert f"hf-efficient {name}: error: unrecognized arguments: --no-such-option" in told


def test_completion_knows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    hidden = {a.dest for parser in ALL.values() for a in parser._actions if a.help is argparse.SUPPRESS}
    for name, parser in ALL.items():
        for action in parser._actions:
            if action.dest not in hidden:
                assert all(option in script for option in action.option_strings), name


@pytest.mark.parametrize("command", ["env", "methods", "methods itg"])
def test_json_is_all_that_standard_output_holds(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 0
    for_people = capsys.readouterr().out
    assert main([*command.split(), "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert isinstance(json.loads(printed.out), dict)
    assert printed.err == for_people


def test_methods_are_told_to_programs(tmp_path: Path) -> None:
    assert main(["methods", "--json", str(tmp_path / "all.json")]) == 0
    rows = json.loads((tmp_path / "all.json").read_text())["methods"]
    itg = next(row for row in rows if row["name"] == "itg")
    assert itg["budget"] == "representation"
    assert itg["page"] == "docs/itg.md"


def test_prune_says_what_becomes_of_a_picture(vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (budget, kept) in enumerate((("20", 20), ("0.25", 36), ("5000", 144), ("1.0", 144))):
        out = tmp_path / str(number)
        assert main(["prune", str(vlm), str(out), "--budget", budget, "--json", "-"]) == 0
        printed = capsys.readouterr()
        found = json.loads(printed.out)
        assert found["visual_tokens"] == {"of_picture": [1024, 768], "before": 144, "after": kept}
        assert found["token_pruner"]["budget"] == TokenPrunerConfig.from_pretrained(out).budget
        becomes = f"has {kept} visual tokens instead of 144" if kept < 144 else "keeps its 144 visual tokens"
        assert f"A picture of 1024 x 768 {becomes}." in printed.err
        too_many = "warning: budget 5000 keeps all 144 visual tokens"
        assert (too_many in printed.err) == (budget == "5000")


def test_a_dtype_and_a_device_are_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("prune m o", "report", "demo", "apply m p o", "plan m o --limit file_bytes=1MB"):
        for dtype in ("oak", "int8"):  # weights cannot be cast to whole numbers
            assert f"--dtype {dtype} is not known" in error_of(capsys, *name.split(), "--dtype", dtype)
        if not name.startswith("prune"):
            assert "--device oak cannot be used here" in error_of(capsys, *name.split(), "--device", "oak")
