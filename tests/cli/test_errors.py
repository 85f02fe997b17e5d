"""What the shell is told: in its own words, on one line, whatever goes wrong and wherever the output goes."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient.cli import build_parser, main
from hf_efficient.cli.messages import for_the_shell, options_of, said
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.video.settings import FitSettings
from tests.cli.shell import error_of
from tests.conftest import ROOT

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
RUN = [sys.executable, "-m", "hf_efficient.cli"]


def shell(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *arguments], cwd=ROOT, capture_output=True, text=True, **settings)


def options(*command: str) -> dict[str, argparse.Action]:
    parser = build_parser()
    return options_of(parser, parser.parse_args(command))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("'x' exists: choose another folder, or overwrite it (overwrite=True).",
         "'x' exists: choose another folder, or overwrite it (--overwrite)."),
        ("steps=0 is out of range", "--steps 0 is out of range"),
        ("learning_rate=1e-05, seed=-1", "--learning-rate 1e-05, --seed -1"),
        ("method='a b' is not known", "--method 'a b' is not known"),
        ("lr_quality=0 (lossless) needs lr_codec='libx264', not 'libx265'.",
         "--lr-quality 0 (lossless) needs --lr-codec libx264, not 'libx265'."),
        ("num_features=[8, 16]: a list needs num_chunks equal to its length",
         "--num-features 8,16: a list needs --num-chunks equal to its length"),
        ("Set device=None, `scale` and learning_rate=nan.", "Set no --device, --scale and --learning-rate nan."),
        ("a scale of 2 in\n  two steps, /a/num_chunks and my_steps=3",
         "a scale of 2 in two steps, /a/num_chunks and my_steps=3"),
    ],
)  # fmt: skip
def test_settings_are_named_as_options(message: str, told: str) -> None:
    assert for_the_shell(message, options("stdo", "encode", "a", "b")) == told


def test_values_are_written_as_the_shell_reads_them() -> None:
    known = options("prune", "a", "b")
    assert (
        for_the_shell("proportional_attention=True, llm_layers=[2, 4]", known)
        == "--proportional-attention yes, --llm-layers 2 4"
    )


WRONG: dict[str, Any] = {
    "steps": 0, "batch_size": 0, "learning_rate": 2.0, "halo": 99, "max_patches": 0, "lr_quality": 99, "seed": -1,
    "checkpoint_every": 0, "num_chunks": 999, "num_features": 9999, "num_blocks": 9999, "expansion": 0,
    "budget": 0, "importance_weight": 2.0, "coverage_mix": 2.0, "question_weight": 2.0, "min_group_share": 2.0,
    "merge_static": 2.0, "llm_layers": 0, "llm_budget": 0, "lloyd_steps": -1, "centroid_share": 2.0,
    "importance_power": -1.0, "coverage_power": -1.0, "exchange_passes": -1, "scorer": "/nowhere",
}  # fmt: skip


@pytest.mark.parametrize("config", [FitSettings, TokenPrunerConfig])
def test_every_setting_is_refused_in_the_words_of_the_shell(
    config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong value of each setting: by its list of choices, or by the config's own check, told as an option."""
    (tmp_path / "clip.mp4").write_bytes(b"")
    command = ["prune", tmp_path, tmp_path / "out"]
    if config is FitSettings:
        command = ["stdo", "encode", tmp_path / "clip.mp4", tmp_path / "out"]
    parser = options(*map(str, command))
    told = set()
    for setting in fields(config):
        if setting.name not in parser:
            continue
        option = parser[setting.name].option_strings[0]
        value = WRONG.get(setting.name, "nonsense")
        if setting.name == "scorer":
            continue  # looked at after the video
        error = error_of(capsys, *[*command, f"{option}={value}"])
        assert option in error, error
        assert f"{setting.name}=" not in error, error
        told.add(setting.name)
    assert len(told) >= 15


def test_choices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from hf_efficient.methods import BACKBONES, VIDEO
    from hf_efficient.video.networks.spec import GENERAL_SCALES

    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    assert "--method {id_pruner,random,uniform,top_importance,divprune," in capsys.readouterr().out
    assert "choose from 'id_pruner', 'random'" in error_of(capsys, *["prune", "a", "b", "--method", "best"])
    known = options("stdo", "encode", "a", "b")
    assert known["method"].choices == VIDEO.names
    assert list(known["backbone"].choices or ()) == list(BACKBONES.names)
    assert list(known["scale"].choices or ()) == list(GENERAL_SCALES)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("stdo info {tmp}/gone", "gone' is missing: there is no such folder"),
        ("stdo info {tmp}/file", "file' is a file, and a bundle is a folder"),
        ("stdo decode {tmp}/gone {tmp}/o.mp4", "gone' is missing: there is no such folder"),
        ("stdo evaluate {tmp}/gone {tmp}/file", "gone' is missing: there is no such folder"),
        ("stdo encode {tmp}/gone.mp4 {tmp}/b", "no file"),
        ("demo --data {tmp}/gone", "gone' is missing: there is no such folder of images"),
        ("demo --model {tmp}/gone", "gone' is missing: there is no such folder"),
        ("prune {tmp}/gone {tmp}/out", "gone' is missing: there is no such folder"),
        ("stdo encode {tmp}/file {tmp}/b --steps=1.5", "argument --steps: invalid int value: '1.5'"),
        ("stdo encode {tmp}/file {tmp}/b --num-features 8,x", "'8,x' is neither a whole number nor several"),
        ("stdo encode {tmp}/file {tmp}/b --num-chunks=many", "'many' is neither a whole number nor auto"),
        (
            "stdo encode {tmp}/file {tmp}/b --method single --num-chunks 4",
            "--num-chunks 4 is not read by --method single, only by 'jstdo', 'stdo', 'time'",
        ),
        ("stdo encode {tmp}/file {tmp}/b --warm-start none", "--warm-start none is not read by --method delta"),
        (
            "stdo encode {tmp}/file {tmp}/b --method jstdo --backbone espcn --expansion 2",
            "--expansion 2 is not read by --backbone espcn, only by 'wdsr'",
        ),
        ("stdo encode {tmp}/file {tmp}/b --budget 1Mbps --lr-quality 3", "--lr-quality 3: the budget chooses it"),
        ("stdo encode {tmp}/file {tmp}/b --device foo", "--device foo is not available here; expected one of 'cpu'"),
        ("stdo evaluate {tmp}/gone {tmp}/file --threads 0", "'0' is not a whole number from 1 to 1024"),
        ("stdo evaluate {tmp}/gone {tmp}/file --every=-1", "'-1' is not a whole number >= 1"),
        ("stdo dance", "invalid choice: 'dance'"),
        ("stdo", "action"),
        ("env --budget 3", "unrecognized arguments"),
    ],
)
def test_what_is_missing_is_called_missing(
    command: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no video")
    assert message in error_of(capsys, *command.format(tmp=tmp_path).split())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "name", ["two words.mp4", "new\nline.mp4", "-dash.mp4", "ünï.mp4", "surro\udc80gate.mp4", "'q'.mp4"]
)
def test_names_of_every_kind_come_back_on_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("no video")
    monkeypatch.chdir(tmp_path)
    error = error_of(capsys, *["stdo", "encode", "--", name, "out"])
    assert "cannot be read as video" in error


def test_an_error_of_the_system_names_the_file_first() -> None:
    assert said(PermissionError(13, "Permission denied", "/a/b")) == "'/a/b': Permission denied"
    assert said(ValueError("x")) == "x"
    assert said(MemoryError()) == "MemoryError"


@pytest.mark.parametrize("library", ["av", "peft", "matplotlib", "diffusers", "gradio"])
def test_commands_without_a_library_name_the_pip_line(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever library a command's module wants when it is imported, the message says how to get it."""
    from hf_efficient import cli
    from hf_efficient.extras import LIBRARIES

    def without(_: str) -> Any:
        raise ModuleNotFoundError(f"No module named {library!r}", name=f"{library}.part")

    monkeypatch.setattr(cli, "import_module", without)
    error = error_of(capsys, *["stdo", "info", "x"])
    assert error.endswith(f"{library} is not installed: pip install 'hf-efficient[{LIBRARIES[library][0]}]'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "command", "extra"),
    [
        ("av", "stdo encode README.md /tmp/never", "video"),
        ("av", "stdo info tests", "video"),
        ("av", "stdo decode tests /tmp/never.mp4", "video"),
        ("av", "stdo evaluate tests README.md", "video"),
        ("av", "stdo compare tests README.md", "video"),
    ],
)
def test_every_command_of_video_without_its_library(library: str, command: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None; from hf_efficient.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    run = subprocess.run([sys.executable, "-c", code, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert f"{library} is not installed: pip install 'hf-efficient[{extra}]'" in run.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m hf_efficient.cli prune --help | head -1"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout.startswith("usage: hf-efficient prune")
    assert run.stderr == ""
    assert run.returncode in (0, 141)


def test_a_closed_pipe_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run([*RUN, "--version"], cwd=ROOT, env=BUFFERED, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has this device")
def test_an_output_that_is_full_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*RUN, "--version"], cwd=ROOT, env=BUFFERED, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert run.returncode == 2
    assert run.stderr == "hf-efficient: error: the output cannot be written: No space left on device\n"


def test_a_locale_without_the_letters_is_no_error(tmp_path: Path) -> None:
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    run = shell("stdo", "info", str(tmp_path / "ü"), env={**os.environ, **settings})
    assert run.returncode == 2
    assert run.stderr.startswith("hf-efficient stdo: error: ")
    assert "' is missing: there is no such folder." in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="to look into a process takes Linux")
def test_an_interrupt_from_the_keyboard_is_one_word(tmp_path: Path) -> None:
    """While libraries are imported, too."""
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, children too
    try:
        command = [*RUN, "demo", "--output", str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    memory = Path(f"/proc/{process.pid}/maps")
    while "torch" not in memory.read_text():  # until the command runs
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=180)
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("stdo encode a b", "interrupted: the same command again goes on from what was saved last"),
        ("train m plan new", "interrupted: the same command again goes on from what was saved last"),
        ("stdo decode a b", "interrupted"),
    ],
)
def test_an_interrupt_says_what_goes_on(
    command: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_efficient.cli.import_module", interrupted)
    assert main(command.split()) == 130
    assert capsys.readouterr().err == f"{told}\n"


def test_work_of_another_source_is_told_without_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hf_efficient.video.encode.fit import Fit
    from tests.video.clips import make_clip, moving_frames

    clips = [make_clip(tmp_path / name, moving_frames(2, 96, 64, seed)) for seed, name in enumerate(("a.mp4", "b.mp4"))]
    Fit(clips[0], tmp_path / "out", FitSettings(method="jstdo", steps=5), False, torch.device("cpu")).prepare(False)
    chosen = ["--method", "jstdo", "--steps", "6", "--device", "cpu"]
    error = error_of(capsys, *["stdo", "encode", clips[1], tmp_path / "out", *chosen])
    assert "(another source file, --steps 5 then, --steps 6 now)" in error
    assert "or with --overwrite to start again" in error
    assert not re.search(r"[0-9a-f]{20}", error)
