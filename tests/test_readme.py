"""The README's code runs as it stands, with a shipped model in place of a large one."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_efficient.cli import build_parser
from hf_efficient.representation.evaluation.questions import TINY_VLM
from tests.conftest import ROOT
from tests.optimization.training.trainers import bert, rows

TEXT = (ROOT / "README.md").read_text()
MODELS = {"llava-hf/llava-1.5-7b-hf": str(TINY_VLM)}
MOST_WORDS = 700


def blocks(language: str) -> list[str]:
    """Code of the README."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:topology='bidst' will exchange no weight")  # in the one step of this test
@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python_runs(code: str, tmp_path: Path) -> None:
    args = TrainingArguments(tmp_path, report_to=[], use_cpu=True, max_steps=1, disable_tqdm=True)
    names: dict[str, Any] = {"model": bert(), "args": args, "data": rows(4)}
    for name, here in MODELS.items():
        code = code.replace(name, here)
    exec(compile(code, "README.md", "exec"), names)
    if "processor" in names:
        pruner = names["model"].base_model.token_pruner
        assert pruner.config.budget == 64


@pytest.mark.parametrize("line", [line for code in blocks("bash") for line in code.splitlines() if line])
def test_commands_are_there(line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "hf-efficient":
        assert build_parser().parse_args(arguments).command == arguments[0]
    elif program == "pip":
        extras = set(re.findall(r"\w+", arguments[1]))
        known = set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE))
        assert arguments[0] == "install"
        assert extras
        assert extras <= known
    else:
        assert program == "make"
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text()


def test_it_can_be_read_in_minutes() -> None:
    text = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert len(re.sub(r"\]\([^)\s]*( \"[^\"]*\")?\)", "]", text).split()) <= MOST_WORDS
