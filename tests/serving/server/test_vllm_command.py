"""The command line that `--engine vllm` becomes."""

import argparse
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hf_efficient import TokenPrunerConfig
from hf_efficient.cli import build_parser, pruner_settings
from hf_efficient.representation.evaluation.questions import TINY_VLM
from hf_efficient.serving import vllm_command
from tests.cli.shell import error_of
from tests.local_hub import LocalHub

ROOT = Path(__file__).parents[3]


def parsed(*arguments: object) -> tuple[argparse.Namespace, dict[str, Any]]:
    given = build_parser().parse_args(["serve", *map(str, arguments), "--engine", "vllm"])
    return given, pruner_settings(given)


def options_of(command: list[str]) -> dict[str, str]:
    return {a: b for a, b in pairwise(command) if a.startswith("--")}


def test_settings_become_an_override(tmp_path: Path) -> None:
    command = vllm_command.vllm_command(*parsed(TINY_VLM, "--budget", 64, "--method", "divprune", "--port", 9))
    options = options_of(command)
    assert command[command.index("--model") + 1] == str(TINY_VLM)  # no distribution called vllm is here
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "9")
    values = json.loads(options["--hf-overrides"])["token_pruner"]
    assert TokenPrunerConfig.from_dict(values) == TokenPrunerConfig("divprune", budget=64)


def test_vllm_is_started_by_its_own_command_where_it_has_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_command, "version", lambda name: "0.32.0")
    command = vllm_command.vllm_command(*parsed(TINY_VLM, "--budget", 64))
    assert command[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", str(TINY_VLM)]


def test_without_settings_the_plug_in_reads_the_folder(tmp_path: Path) -> None:
    TokenPrunerConfig(budget=7).save_pretrained(tmp_path)
    assert "--hf-overrides" not in vllm_command.vllm_command(*parsed(tmp_path))


def test_without_any_pruner_it_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_command, "check_vllm", lambda: None)
    assert "was saved without a token pruner" in error_of(capsys, "serve", TINY_VLM, "--engine", "vllm")
    assert "there is no such folder" in error_of(capsys, "serve", "no_such_folder", "--engine", "vllm")


def test_settings_take_the_place_of_saved_ones(tmp_path: Path) -> None:
    TokenPrunerConfig("divprune", budget=7, features="encoder").save_pretrained(tmp_path)
    options = options_of(vllm_command.vllm_command(*parsed(tmp_path, "--budget", 9)))
    values = json.loads(options["--hf-overrides"])["token_pruner"]
    assert TokenPrunerConfig.from_dict(values) == TokenPrunerConfig("divprune", budget=9, features="encoder")


def test_further_arguments_are_handed_on() -> None:
    given = parsed(TINY_VLM, "--budget", 3, "--max-pictures", 2, "--vllm-arguments=--max-model-len 4096 --seed '3'")
    command = vllm_command.vllm_command(*given)
    assert command[-4:] == ["--max-model-len", "4096", "--seed", "3"]
    assert json.loads(options_of(command)["--limit-mm-per-prompt"]) == {"image": 2, "video": 2}


def test_without_vllm_one_sentence_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_command, "find_spec", lambda name: None)
    error = error_of(capsys, "serve", TINY_VLM, "--budget", "3", "--engine", "vllm")
    assert error.endswith("vLLM is not installed: pip install 'hf-efficient[vllm]', or use --engine transformers.")


def test_without_the_plug_in_vllm_is_not_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_command, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm_command, "entry_points", lambda group: ())
    assert "would serve all tokens" in error_of(capsys, "serve", TINY_VLM, "--budget", "3", "--engine", "vllm")


def test_a_torchvision_that_does_not_load_is_told_of_before_vllm_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(vllm_command, "find_spec", lambda name: object())
    error = error_of(capsys, "serve", TINY_VLM, "--budget", "3", "--engine", "vllm")
    assert "nms does not exist" in error
    assert "--index-url https://download.pytorch.org/whl/cpu" in error


def test_options_of_the_other_engine_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, "serve", TINY_VLM, "--budget", "3", "--engine", "vllm", "--device", "cpu")
    assert "--device cpu is not for vLLM" in error


def test_it_becomes_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(vllm_command, "check_vllm", lambda: None)
    monkeypatch.setattr(vllm_command, "run_in_place", lambda command, around: ran.append((list(command), around)))
    given = parsed(TINY_VLM, "--budget", 64, "--max-megapixels", 3)
    vllm_command.become_vllm(*given)
    limits = {"VLLM_MAX_IMAGE_PIXELS": "3000000", "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB": "20"}
    assert ran == [(vllm_command.vllm_command(*given), limits)]


@pytest.mark.parametrize("already", [None, "7"])
def test_variables_go_to_the_program_unless_they_are_set(tmp_path: Path, already: str | None) -> None:
    code = "import sys; from hf_efficient.serving.in_place import run_in_place\n"
    code += "run_in_place([sys.executable, '-c', 'import os; print(os.environ[\"LIMIT\"])'], {'LIMIT': '3'})"
    around = os.environ | {"PYTHONPATH": str(ROOT)} | ({} if already is None else {"LIMIT": already})
    done = subprocess.run([sys.executable, "-c", code], env=around, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == (already or "3"), done.stderr


def test_a_model_of_the_hub_without_a_pruner_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    code = """
from huggingface_hub import hf_hub_download
from hf_efficient.serving.vllm_command import check_saved
for model in ("tester/stock", "tester/none"):
    try:
        hf_hub_download(model, "config.json")
    except OSError:
        pass
    try:
        check_saved(model, None)
    except OSError as error:
        print("was saved without a token pruner" in str(error))
"""
    with LocalHub() as hub:
        hub.repos["tester/stock"] = {"config.json": b"{}"}
        for offline in ("0", "1"):  # the second time out of the cache
            environment = hub.environment(tmp_path) | {"HF_HUB_OFFLINE": offline}
            run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
            assert run.stdout.split() == ["True", "False"], run.stderr[-2000:]
