"""`plan`, `apply`, `train`, `doctor` and `completion`, from model to trained folder, and the help of all commands."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from hf_efficient import EfficiencyPlan, SAMArguments
from hf_efficient.cli import build_parser, main
from hf_efficient.cli.doctor import judged, pip_line
from tests.cli.shell import error_of
from tests.scene_vlm import make_scenes, save_vlm


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("plans")
    return save_vlm(folder / "model"), str(make_scenes(folder / "data", scenes=2))


@pytest.mark.slow
def test_from_a_model_to_a_planned_folder(
    places: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = places
    plan, new = str(tmp_path / "plan"), str(tmp_path / "new")
    limits = ["--limit", "prefill_flops=70%", "--levers", "--methods", "divprune", "--rows", "4"]
    assert main(["plan", model, plan, "--data", data, *limits, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"]["measured"]["prefill_flops"] <= found["limits"]["prefill_flops"]
    assert main(["apply", model, plan, new, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == found["best"]["plan"]
    kept = EfficiencyPlan.from_pretrained(new).token_pruner
    assert kept is not None
    assert kept.budget == found["best"]["plan"]["token_pruner"]["budget"]
    loaded, _ = EfficiencyPlan.load(new)
    assert loaded.token_pruner.config == kept
    assert main(["plan", model, plan, "--data", data, "--limit", "prefill_flops=1%", "--rows", "2", "--levers"]) == 3
    assert "can be reached. What binds" in capsys.readouterr().err


def test_a_plan_is_trained_and_trained_on(places: tuple[str, str], tmp_path: Path) -> None:
    model, data = places
    EfficiencyPlan(sam=SAMArguments("s2sam", rho=0.1)).save_pretrained(tmp_path / "plan")
    command = ["train", model, str(tmp_path / "plan"), str(tmp_path / "new"), "--data", data, "--batch-size", "2",
               "--save-steps", "1", "--learning-rate", "1e-3"]  # fmt: skip
    assert main([*command, "--steps", "1"]) == 0
    assert main([*command, "--steps", "2", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["steps"], found["plan"]["sam"]["method"], found["uploaded"]) == (2, "s2sam", None)
    assert (tmp_path / "new_checkpoints" / "checkpoint-2").is_dir()
    trained, before = (AutoModelForImageTextToText.from_pretrained(p) for p in (tmp_path / "new", model))
    assert not torch.equal(trained.lm_head.weight, before.lm_head.weight)


@pytest.mark.slow
def test_a_limit_on_training_chooses_a_recipe_that_is_carried_out(
    places: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = places
    command = [
        "plan",
        model,
        str(tmp_path / "plan"),
        "--data",
        data,
        "--rows",
        "4",
        "--levers",
        "--batch-size",
        "2",
        "--steps",
        "3",
    ]
    assert main([*command, "--limit", "training_bytes=500%", "step_seconds=500%", "--json", "-"]) == 0
    free = json.loads(capsys.readouterr().out)
    whole = free["stock"]["measured"]["training_bytes"]
    assert free["best"]["plan"]["sam"]["method"] == "sam"  # the first recipe
    assert free["best"]["measured"]["training_bytes"] <= 5 * whole
    assert not list(tmp_path.glob("*checkpoints*"))
    assert main([*command, "--limit", f"training_bytes={0.8 * whole:.0f}B"]) == 0
    assert f"hf-efficient train {model}" in capsys.readouterr().out
    sparsity = EfficiencyPlan.from_pretrained(tmp_path / "plan").sparsity
    assert sparsity is not None
    assert sparsity.target == "delta"  # what trains all weights takes more
    assert main(["train", model, str(tmp_path / "plan"), str(tmp_path / "new"), "--data", data, "--batch-size", "2",
                 "--steps", "3"]) == 0  # fmt: skip
    loaded, _ = EfficiencyPlan.load(tmp_path / "new")
    assert loaded.peft_config["default"].target == "delta"
    assert main([*command, "--limit", "training_bytes=1KB"]) == 3
    assert "No recipe keeps the limit: training_bytes" in capsys.readouterr().err


def test_what_cannot_be_planned_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, told in (
        ("plan m p --limit fast", "'fast' is not a limit: NAME=AMOUNT"),
        ("plan m p", "required: --limit"),
        ("plan m p --limit file_bytes=1MB --methods itg best", "argument --methods: invalid choice: 'best'"),
        ("plan m {tmp}/p --limit file_bytes=1MB --limit file_bytes=2MB", "file_bytes is given more than once"),
        ("plan m {tmp}/p --limit fast=3", "--limit fast is not known"),
        ("plan m {tmp}/p --limit step_seconds=3MB", "step_seconds='3MB' cannot be read"),
        ("plan m {tmp}/p --limit training_bytes=3MB --batch-size 0", "'0' is not a whole number >= 1"),
        ("train m p o --learning-rate -1", "'-1' is not a number > 0"),
        ("apply /gone/m /gone/p {tmp}/o", "/gone/p' is missing"),
    ):
        assert told in error_of(capsys, *given.format(tmp=tmp_path).split())


def test_limits_add_up() -> None:
    given = build_parser().parse_args(["plan", "m", "p", "--limit", "a=1", "b=2", "--limit", "c=3"])
    assert given.limit == [("a", "1"), ("b", "2"), ("c", "3")]


def test_a_folder_that_cannot_be_saved_to_is_refused_before_training(
    places: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = places
    EfficiencyPlan(sam=SAMArguments("s2sam", rho=0.1)).save_pretrained(tmp_path / "plan")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model.safetensors").write_bytes(b"mine")
    command = ["train", model, str(tmp_path / "plan"), str(tmp_path / "new"), "--data", data]
    assert "is not replaced: name another folder" in error_of(capsys, *command)
    assert not (tmp_path / "new_checkpoints").exists()
    assert "--device oak cannot be used here" in error_of(capsys, *command, "--device", "oak")


def test_the_doctor_says_what_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.cli.doctor.unmet_names", lambda: ["oak: the name is gone"])  # takes its time
    assert main(["doctor", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["methods"]["itg"] == {"budget": "representation", "runs": True}
    assert found["uses"]["serve --engine vllm"] == {"runs": False, "missing": ["vllm"]}
    assert judged("torch", ">=99")["verdict"] == "outside of what was tested"
    assert judged("oak", ">=1")["verdict"] == "not installed"
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "what can run here" in said
    assert "oak: the name is gone" in said


def test_the_doctor_names_the_extra_that_brings_all_that_is_missing() -> None:
    assert pip_line(["av", "diffusers"]) == ": pip install 'hf-efficient[video]'"
    assert pip_line(["peft", "accelerate"]) == ": pip install 'hf-efficient[sparsity]'"
    assert pip_line(["accelerate"]) == ": pip install 'hf-efficient[training]'"
    assert pip_line(["bitsandbytes", "accelerate"]) == ""  # no extra brings the first
