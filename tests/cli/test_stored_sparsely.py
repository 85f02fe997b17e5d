"""A folder that `apply` pruned holds its weights sparsely: every command that takes a model takes it."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from hf_efficient import EfficiencyPlan, PruningConfig, TokenPrunerConfig, load_token_pruned
from hf_efficient.cli import main
from hf_efficient.files.interrupted_save import FILE_NAME
from hf_efficient.reading import shown
from hf_efficient.representation.evaluation.questions import encode_prompts, load_vlm
from hf_efficient.serving.vllm_command import vllm_command
from hf_efficient.sparsity.storage.stored import load_stored, stored_sparsely
from tests.scene_vlm import make_scenes, save_vlm


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `apply` makes of a plan with zeros and fewer visual tokens."""
    folder = tmp_path_factory.mktemp("applied")
    model, data = save_vlm(folder / "model"), make_scenes(folder / "data", scenes=2)
    plan = EfficiencyPlan(pruning=PruningConfig("wanda", 0.6), token_pruner=TokenPrunerConfig("divprune", budget=9))
    plan.save_pretrained(folder / "plan")
    assert main(["apply", model, str(folder / "plan"), str(folder / "new"), "--data", str(data)]) == 0
    assert [path.name for path in (folder / "new").glob("*.safetensors")] == [FILE_NAME]
    return folder / "new"


def logits(model: Any, processor: Any) -> torch.Tensor:
    inputs = encode_prompts(processor, [Image.new("RGB", (96, 96), "teal")], ["list all ."])
    with torch.no_grad():
        return model(**inputs).logits


def test_every_loader_of_ours_reads_the_same_model(applied: Path) -> None:
    expected = logits(*EfficiencyPlan.load(applied))
    assert torch.equal(logits(*load_token_pruned(applied)), expected)
    model, processor = load_vlm(applied)
    assert logits(model, processor).shape[1] == expected.shape[1] + 144 - 9  # all tokens
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    assert (weight == 0).float().mean() == pytest.approx(0.6, abs=0.02)


def test_arguments_of_the_stock_loader_act(applied: Path) -> None:
    assert stored_sparsely(applied)
    cls = type(load_vlm(applied)[0])
    model = load_stored(cls, applied, dtype="bfloat16", device_map="auto", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    with pytest.raises(ValueError, match="max_memory cannot be given"):
        load_stored(cls, applied, max_memory={0: "1GB"})
    with pytest.raises(ValueError, match="expected one device or 'auto'"):
        load_stored(cls, applied, device_map={"lm_head": "cpu", "model": "meta"})
    for dtype in ("oak", "int8", torch.int8):
        with pytest.raises(ValueError, match=f"dtype={shown(dtype)} is not known"):
            load_stored(cls, applied, dtype=dtype)


def test_what_is_no_model_is_told_as_ever(tmp_path: Path, applied: Path) -> None:
    (tmp_path / "config.json").write_bytes((applied / "config.json").read_bytes())
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_stored(type(load_vlm(applied)[0]), tmp_path)


def test_its_cost_is_reported(applied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(applied), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    now, before = found["now"], found["before"]
    assert (now["representation"]["kept_tokens"], before["representation"]["kept_tokens"]) == (9, 144)
    assert now["parameters"]["nonzero"] < 0.8 * now["parameters"]["total"]
    with safe_open(applied / FILE_NAME, "pt") as file:  # what is there, not what would be saved
        size = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert now["parameters"]["file_bytes"] == before["parameters"]["file_bytes"] == size


def test_it_is_pruned_asked_planned_for_and_planned_on(
    applied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(applied), str(tmp_path / "more"), "--budget", "4"]) == 0
    kept = load_vlm(tmp_path / "more")[0].state_dict()  # whole, so that plain transformers reads it
    assert all(torch.equal(value, kept[name]) for name, value in load_vlm(applied)[0].state_dict().items())
    demo = ["demo", "--model", str(applied), "--scenes", "1", "--draw", "1", "--budgets", "9"]
    assert main([*demo, "--output", str(tmp_path / "demo"), "--json", str(tmp_path / "d.json")]) == 0
    rows = json.loads((tmp_path / "d.json").read_text())["rows"]
    assert [row["visual_tokens"] for row in rows] == [144, 9]
    limits = ["--limit", "prefill_flops=70%", "--levers", "--methods", "divprune", "--rows", "2"]
    assert main(["plan", str(applied), str(tmp_path / "plan"), *limits]) == 0
    assert EfficiencyPlan.from_pretrained(tmp_path / "plan").token_pruner is not None


def test_the_server_has_it(applied: Path) -> None:
    pytest.importorskip("openai")
    from hf_efficient.serving.engine import PrunedModels, Source

    models = PrunedModels(Source(model=str(applied), config=None, name="m", device="cpu"))
    assert models.pair is not None
    assert torch.equal(logits(*models.pair), logits(*EfficiencyPlan.load(applied)))


def test_vllm_is_given_whole_weights_alone(applied: Path, tmp_path: Path) -> None:
    model = save_vlm(tmp_path / "m")
    given = argparse.Namespace(model=model, revision=None, host="h", port=1, max_pictures=1, max_videos=1, name=None,
                               dtype="auto", allow_files=None, vllm_arguments=None)  # fmt: skip
    assert model in vllm_command(given, {"budget": 4})
    given.model = str(applied)
    with pytest.raises(ValueError, match=r"stored sparsely, which vLLM does not read\. Write them whole"):
        vllm_command(given, {"budget": 4})
