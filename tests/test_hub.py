"""push_to_hub and from_pretrained over HTTP, against a Hub on loopback.

Each test runs in a subprocess, since the libraries read HF_ENDPOINT when they are imported.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_hub import LocalHub

CONFIG_FILE = "token_pruner_config.json"


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as server:
        yield server


def run_against(hub: LocalHub, home: Path, code: str, succeeds: bool = True) -> str:
    """Run code in a fresh interpreter that takes `hub` for the Hub; its output, or its error where it should fail."""
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env=hub.environment(home), cwd=root, capture_output=True, text=True
    )
    assert (done.returncode == 0) is succeeds, done.stderr
    return done.stdout if succeeds else done.stderr


def test_config_goes_to_the_hub_and_comes_back(hub: LocalHub, tmp_path: Path) -> None:
    code = """
from hf_efficient import TokenPrunerConfig
config = TokenPrunerConfig(method="divprune", budget=1.0, importance="norm")
config.push_to_hub("tester/pruner")
config.push_to_hub("tester/pruner")  # a second push to the same place is no error
back = TokenPrunerConfig.from_pretrained("tester/pruner")
assert back == config and type(back.budget) is float, back
"""
    run_against(hub, tmp_path, code)
    assert set(hub.repos["tester/pruner"]) == {CONFIG_FILE}
    assert json.loads(hub.repos["tester/pruner"][CONFIG_FILE])["method"] == "divprune"


def test_a_repository_without_a_pruner_is_a_clear_error(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["tester/plain"] = {"config.json": b"{}"}
    code = "from hf_efficient import TokenPrunerConfig; TokenPrunerConfig.from_pretrained('tester/plain')"
    assert CONFIG_FILE in run_against(hub, tmp_path, code, succeeds=False)


def test_attached_model_goes_to_the_hub_and_comes_back(hub: LocalHub, tmp_path: Path) -> None:
    code = """
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from hf_efficient import TokenPrunerConfig, attach_token_pruner, load_token_pruned
from hf_efficient.representation.evaluation.questions import encode_prompts, prefill
from tests.scene_vlm import make_scene_vlm
from PIL import Image

model, processor = make_scene_vlm()
image, question = Image.effect_noise((96, 96), 80), "what is at left ?"
stock = prefill(model, encode_prompts(processor, [image], [question])).logits
attach_token_pruner(model, processor, TokenPrunerConfig(budget=20))
pruned = prefill(model, encode_prompts(processor, [image], [question])).logits
model.push_to_hub("tester/vlm")
processor.push_to_hub("tester/vlm")

back, back_processor = load_token_pruned("tester/vlm")
inputs = encode_prompts(back_processor, [image], [question])
assert (inputs["input_ids"] == model.config.image_token_id).sum() == 20
assert torch.equal(prefill(back, inputs).logits, pruned)

plain = AutoModelForImageTextToText.from_pretrained("tester/vlm")
plain_processor = AutoProcessor.from_pretrained("tester/vlm")
inputs = encode_prompts(plain_processor, [image], [question])
assert (inputs["input_ids"] == model.config.image_token_id).sum() == 144
assert torch.equal(prefill(plain, inputs).logits, stock)
"""
    run_against(hub, tmp_path, code)
    files = hub.repos["tester/vlm"]
    assert {"config.json", "model.safetensors", "tokenizer.json", CONFIG_FILE} <= set(files)
    assert json.loads(files["config.json"])["architectures"] == ["LlavaForConditionalGeneration"]
    assert json.loads(files[CONFIG_FILE])["budget"] == 20


def test_sparse_adapters_and_sparse_checkpoints_go_to_the_hub_and_come_back(hub: LocalHub, tmp_path: Path) -> None:
    code = """
import tempfile, torch
from huggingface_hub import HfApi
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from hf_efficient import BiDSTConfig, load_sparse, save_sparse
from tests.sparsity.models import disturb, llama, logits

llama().push_to_hub("tester/base")
base = type(llama()).from_pretrained("tester/base")
model = get_peft_model(base, BiDSTConfig(sparsity=0.9, task_type="CAUSAL_LM"))
disturb(model)
expected = logits(model)
model.push_to_hub("tester/adapter")
assert torch.equal(logits(PeftModel.from_pretrained(llama(), "tester/adapter")), expected)
assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained("tester/adapter")), expected)

with tempfile.TemporaryDirectory() as folder:
    save_sparse(model.merge_and_unload(), folder)
    HfApi().create_repo("tester/sparse", exist_ok=True)
    HfApi().upload_folder(repo_id="tester/sparse", folder_path=folder)
assert torch.equal(logits(load_sparse("tester/sparse")), expected)
"""
    run_against(hub, tmp_path, code)
    assert json.loads(hub.repos["tester/adapter"]["adapter_config.json"])["peft_type"] == "BIDST"
    assert "model.sparse.safetensors" in hub.repos["tester/sparse"]
