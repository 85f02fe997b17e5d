"""lmms-eval's model `hf_efficient`, and `hf-efficient eval`. A whole run needs lmms-eval in some environment."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_efficient import TokenPrunerConfig
from hf_efficient.cli import build_parser, evaluate, pruner_settings
from hf_efficient.representation.evaluation.questions import (
    EVALUATION_SET,
    TINY_VLM,
    answer_questions,
    load_evaluation_set,
    load_vlm,
    pruned,
)
from hf_efficient.serving import lmms_model
from tests.cli.shell import error_of
from tests.conftest import ROOT

TASK = Path(__file__).parent / "task"
SCENES = 4


def lmms_python() -> str | None:
    """An interpreter that has lmms-eval: this one, that of `make lmms-eval`, or the one of LMMS_PYTHON."""
    if find_spec("lmms_eval") is not None:
        return sys.executable
    made = ROOT / ".venv-lmms" / "bin" / "python"
    return os.environ.get("LMMS_PYTHON") or (str(made) if made.exists() else None)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `hf-efficient eval` writes of each question, and under "accuracy" and "kept" of all."""
    python = lmms_python()
    if python is None:
        pytest.skip(
            "lmms-eval is not installed (its av<16 excludes ours): `make lmms-eval` makes an environment for it"
        )
    folder = tmp_path_factory.mktemp("lmms")
    task, lines = shutil.copytree(TASK, folder / "task"), []
    for scene in load_evaluation_set(limit=SCENES):
        for q in scene.questions:
            lines.append({"file": str(EVALUATION_SET / scene.name), "question": q.question, "answer": q.answer})
    (task / "scenes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    yaml = task / "scenes.yaml"
    yaml.write_text(yaml.read_text().replace("scenes.jsonl", str(task / "scenes.jsonl")))
    paths = os.pathsep.join([str(ROOT), str(installed(folder / "metadata"))])
    command = [python, "-m", "hf_efficient.cli", "eval", str(TINY_VLM), "--tasks", "hf_efficient_scenes"]
    command += ["--method", "divprune", "--budget", "3", "--batch-size", "5", "--device", "cpu"]
    command += ["--output", str(folder / "out"), f"--lmms-arguments=--include_path {task} --log_samples"]
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HOME": str(folder / "home")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (samples,) = (folder / "out").rglob("*_samples_*.jsonl")
    (results,) = (folder / "out").rglob("*_results.json")
    found = {}
    for line in map(json.loads, samples.read_text().splitlines()):
        asked = lines[line["doc_id"]]
        found[f"{asked['file']} {asked['question']}"] = line["filtered_resps"]
    values = json.loads(results.read_text())["results"]["hf_efficient_scenes"]
    kept = re.search(r"avg_visual_tokens_kept\|\s*([\d.]+)", done.stdout)
    return {**found, "accuracy": values["exact_match,none"], "kept": kept[1] if kept else ""}


def installed(folder: Path) -> Path:
    """What pip writes of the package: its entry points, read from setup.py."""
    named = re.search(r'"lmms_eval.models": \["([^"]+)"\]', (ROOT / "setup.py").read_text())
    assert named is not None
    information = folder / "hf_efficient-0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: hf-efficient\nVersion: 0\n")
    (information / "entry_points.txt").write_text(f"[lmms_eval.models]\n{named[1]}\n")
    return folder


def test_answers_are_those_of_the_pruned_model(answers: dict[str, str]) -> None:
    model, processor = load_vlm()
    scenes = load_evaluation_set(limit=SCENES)
    asked = [(scene, q) for scene in scenes for q in scene.questions]
    with pruned(model, processor, TokenPrunerConfig("divprune", budget=3)):
        images, questions = [scene.image for scene, _ in asked], [q.question for _, q in asked]
        given = answer_questions(model, processor, images, questions, batch_size=5)
    right = 0
    for (scene, q), text in zip(asked, given):
        assert answers[f"{EVALUATION_SET / scene.name} {q.question}"].strip() == text
        right += text == q.answer
    assert answers["accuracy"] == pytest.approx(right / len(asked))
    assert float(answers["kept"]) == 3 * len(asked)


def command_of(*arguments: str) -> list[str]:
    given = build_parser().parse_args(["eval", str(TINY_VLM), "--tasks", "pope,mme", *arguments])
    return evaluate.lmms_command(given, pruner_settings(given))


def test_settings_become_model_args() -> None:
    command = command_of("--method", "divprune", "--budget", "1.0", "--llm-layers", "2", "9", "--limit", "8")
    pairs = command[command.index("--model_args") + 1]
    assert pairs == f"pretrained={TINY_VLM},dtype=auto,method=divprune,budget=1.0,llm_layers=[2,9]"
    assert command[command.index("--tasks") + 1] == "pope,mme"
    assert command[command.index("--limit") + 1] == "8"
    assert lmms_model.plain("[2,9]") == [2, 9]
    assert lmms_model.plain(1.0) == 1.0
    assert command_of("--lmms-arguments=--seed 3")[-2:] == ["--seed", "3"]


def test_mistakes_are_told_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--budget 0 keeps nothing" in error_of(capsys, "eval", TINY_VLM, "--tasks", "pope", "--budget", "0")
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    assert "lmms-eval is not installed" in error_of(capsys, "eval", TINY_VLM, "--tasks", "pope", "--budget", "3")
    monkeypatch.setattr(evaluate, "find_spec", lambda name: object())
    monkeypatch.setattr(evaluate, "entry_points", lambda group: ())
    assert "does not know the model" in error_of(capsys, "eval", TINY_VLM, "--tasks", "pope", "--budget", "3")


def test_settings_of_tasks_become_those_of_generate() -> None:
    greedy = lmms_model.generation_settings({"temperature": 0, "top_p": 0.9, "max_new_tokens": 5})
    assert greedy == {
        "max_new_tokens": 5, "num_beams": 1, "do_sample": False, "temperature": None, "top_p": None, "top_k": None,
    }  # fmt: skip
    drawn = lmms_model.generation_settings({"temperature": 0.5, "top_p": 0.9})
    assert drawn == {"max_new_tokens": 1024, "num_beams": 1, "do_sample": True, "temperature": 0.5, "top_p": 0.9}
    assert lmms_model.stops_of({"until": "\n\n"}) == ["\n\n"]
    assert lmms_model.stops_of({"until": ["a", ""]}) == ["a"]
    assert lmms_model.stops_of({}) == []


def test_batches_keep_order_and_settings_apart() -> None:
    requests = [(i, None, {"t": i // 3}) for i in range(7)]
    parts = list(lmms_model.batches(requests, 2))
    assert [request for part in parts for request in part] == requests
    assert [len(part) for part in parts] == [2, 1, 2, 1, 1]
