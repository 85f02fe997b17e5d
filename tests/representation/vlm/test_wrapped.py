"""A pruner on and below what others wrap around models: PEFT, data parallelism, torch.compile. It travels with them."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient import (
    TokenPrunerConfig,
    attach_token_pruner,
    detach_token_pruner,
    load_token_pruned,
    prune_inputs,
    remember_images,
    token_pruner,
)
from tests.adapters import BY_TRANSFORMERS
from tests.local_hub import LocalHub
from tests.representation.vlm.test_threads import faults, greedy, jobs_of, told
from tests.tiny import ROWS, generate, prompts, pruned, stock

peft = pytest.importorskip("peft")
CONFIG_FILE = "token_pruner_config.json"
ROOT = Path(__file__).parents[3]
SETTINGS: list[dict[str, Any]] = [{}, {"method": "itg"}, {"budget": 1.0, "llm_layers": [1], "llm_budget": 5}]


def lora(seed: int = 0, **settings: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj", "qkv"], **settings})


def adapted(model: Any, name: str = "default", seed: int = 0) -> Any:
    """The model with an adapter that does something."""
    wrapped = peft.get_peft_model(model, lora(), adapter_name=name)
    shake(wrapped, seed)
    return wrapped.eval()


def shake(wrapped: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part, weight in wrapped.named_parameters():
            if "lora_" in part:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def logits(model: Any, inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A stock LLaVA and its processor, in a folder that adapters can name."""
    model, processor = stock("llava")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_attaching_to_an_adapter_is_attaching_below_it(name, settings):
    below, processor = pruned(name, **settings)
    inputs = processor(**prompts(name, ROWS))
    plain = logits(below, inputs)
    below = adapted(below)
    model, other = stock(name)
    stock_inputs = other(**prompts(name, ROWS))
    model = adapted(model)
    before, classes = logits(model, stock_inputs), [type(m) for m in model.modules()]
    config = below.token_pruner.config
    assert attach_token_pruner(model, other, config) == (model, other)
    assert torch.equal(logits(model, inputs), logits(below, inputs))
    assert not torch.allclose(logits(model, inputs), plain, atol=1e-3)
    assert torch.equal(generate(model, inputs), generate(below, inputs))
    assert torch.equal(generate(model, inputs, num_beams=2), generate(below, inputs, num_beams=2))
    for asked in (model, model.base_model, model.get_base_model()):
        assert asked.token_pruner.config == config
        assert len(asked.token_pruner.last) == 3
    assert faults(jobs_of(model, processor, name, [told_by(model), greedy_by(model)], videos=False), 24) == (0, 0)
    detach_token_pruner(model, other)
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(logits(model, other(**prompts(name, ROWS))), before)


def told_by(model: Any) -> Any:
    return lambda _, processor, arguments: told(model.get_base_model(), processor, arguments)


def greedy_by(model: Any) -> Any:
    return lambda _, processor, arguments: greedy(model.get_base_model(), processor, arguments)


@pytest.mark.parametrize("first", ["attach", "adapt"])
def test_an_adapters_folder_has_the_pruner_and_loads_with_it(first, saved, tmp_path):
    model, processor = loaded(saved)
    config = TokenPrunerConfig(method="itg", budget=5)
    if first == "attach":
        attach_token_pruner(model, processor, config)
        model = adapted(model)
    else:
        model = adapted(model)
        attach_token_pruner(model, processor, config)
    inputs = processor(**prompts("llava", ROWS))
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / CONFIG_FILE).read_text()) == config.to_dict()
    again, its_processor = load_token_pruned(tmp_path / "adapter")
    assert isinstance(again, peft.PeftModel)
    assert again.token_pruner.config == config
    assert torch.equal(its_processor(**prompts("llava", ROWS))["input_ids"], inputs["input_ids"])
    assert torch.allclose(logits(again.eval(), inputs), expected, atol=1e-6)
    plain = peft.PeftModel.from_pretrained(loaded(saved)[0], tmp_path / "adapter")  # and is an adapter like any other
    detach_token_pruner(model, processor)
    inputs = processor(**prompts("llava", ROWS))
    assert torch.allclose(logits(plain, inputs), logits(model, inputs), atol=1e-6)


def test_every_adapters_folder_has_the_pruner(saved, tmp_path):
    model, processor = loaded(saved)
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=5))
    model = adapted(model)
    model.add_adapter("other", lora())
    shake(model, seed=1)
    model.save_pretrained(tmp_path / "all")
    assert (tmp_path / "all" / CONFIG_FILE).is_file()
    again, _ = load_token_pruned(tmp_path / "all", subfolder="other")
    inputs = processor(**prompts("llava", ROWS))
    first = logits(model, inputs)
    model.set_adapter("other")
    assert not torch.allclose(logits(model, inputs), first, atol=1e-3)
    assert torch.allclose(logits(again.eval(), inputs), logits(model, inputs), atol=1e-6)
    model.save_pretrained(tmp_path / "one", selected_adapters=["other"])
    assert (tmp_path / "one" / "other" / CONFIG_FILE).is_file()
    model.save_pretrained(tmp_path / "worker", is_main_process=False)
    assert not (tmp_path / "worker" / CONFIG_FILE).exists()
    with model.disable_adapter():
        assert torch.allclose(logits(model, inputs), logits(pruned("llava", budget=5)[0], inputs), atol=1e-6)


def test_merged_and_unloaded_models_keep_their_pruner(saved, tmp_path):
    model, processor = loaded(saved)
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=5))
    inputs = processor(**prompts("llava", ROWS))
    plain = logits(model, inputs)
    expected = logits(wrapped := adapted(model), inputs)
    twin = copy.deepcopy(wrapped)
    assert torch.equal(logits(twin, inputs), expected)
    assert torch.equal(logits(twin.unload(), inputs), plain)
    merged = wrapped.merge_and_unload()
    assert torch.allclose(logits(merged, inputs), expected, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    again, _ = load_token_pruned(tmp_path / "merged")
    assert torch.allclose(logits(again.eval(), inputs), expected, atol=1e-4)


@BY_TRANSFORMERS
def test_adapters_of_transformers_own_are_saved_with_the_pruner(saved, tmp_path):
    model, processor = loaded(saved)
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=5))
    model.add_adapter(lora())
    shake(model, seed=0)
    inputs = processor(**prompts("llava", ROWS))
    model.save_pretrained(tmp_path / "adapter")
    again, _ = load_token_pruned(tmp_path / "adapter")
    assert torch.allclose(logits(again.eval(), inputs), logits(model.eval(), inputs), atol=1e-6)


def test_an_adapter_without_pruner_or_base_is_a_clear_error(saved, tmp_path):
    model, processor = loaded(saved)
    adapted(model).save_pretrained(tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match=CONFIG_FILE):
        load_token_pruned(tmp_path / "adapter")
    again, _ = load_token_pruned(tmp_path / "adapter", TokenPrunerConfig(budget=3))
    assert again.token_pruner.config.budget == 3
    nameless, _ = pruned("llava")
    adapted(nameless).save_pretrained(tmp_path / "nameless")
    with pytest.raises(ValueError, match="does not name its base model"):
        load_token_pruned(tmp_path / "nameless")


def test_copies_pickles_contexts_and_functions_work_on_adapters(tmp_path):
    model, processor = stock("llava")
    stock_inputs = processor(**prompts("llava", ROWS))
    model = adapted(model)
    config = TokenPrunerConfig(budget=4)
    with torch.no_grad():
        expected = logits(model, prune_inputs(model, stock_inputs, config))
    with remember_images(model), token_pruner(model, processor, config) as (inside, _):
        assert inside is model
        inputs = processor(**prompts("llava", ROWS))
        assert torch.allclose(logits(model, inputs), expected, atol=1e-5)
    assert not hasattr(model.get_base_model().base_model, "token_pruner")
    fresh, fresh_processor = pruned("llava")
    fresh = adapted(fresh)
    twin, twin_processor = pickle.loads(pickle.dumps((fresh, fresh_processor)))
    assert torch.equal(logits(twin, inputs), logits(fresh, inputs))
    assert twin.token_pruner.config == twin_processor.token_pruner.config


@pytest.mark.slow
def test_peft_may_be_imported_after_attaching(tmp_path):
    code = f"""
import sys
from tests.tiny import pruned
model, processor = pruned("llava")
assert "peft" not in sys.modules
from peft import LoraConfig, PromptTuningConfig, get_peft_model
prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)  # which sets nothing on the model
get_peft_model(model, prompt).save_pretrained({str(tmp_path / "prompt")!r})
model, processor = pruned("llava")
get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained({str(tmp_path / "adapter")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder in ("adapter", "prompt"):
        assert (tmp_path / folder / CONFIG_FILE).is_file()


@pytest.mark.slow
def test_adapters_go_to_the_hub_and_subfolders_are_read_from_it(saved, tmp_path):
    code = f"""
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor
from hf_efficient import TokenPrunerConfig, attach_token_pruner, load_token_pruned
model = AutoModelForImageTextToText.from_pretrained({str(saved)!r})
processor = AutoProcessor.from_pretrained({str(saved)!r})
attach_token_pruner(model, processor, TokenPrunerConfig(budget=5))
model.save_pretrained("all/vlm"); processor.save_pretrained("all/vlm")
adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
adapted.push_to_hub("tester/adapter")
again, _ = load_token_pruned("tester/adapter")
assert again.token_pruner.config.budget == 5
from huggingface_hub import HfApi
HfApi().create_repo("tester/all"); HfApi().upload_folder(repo_id="tester/all", folder_path="all")
assert TokenPrunerConfig.from_pretrained("tester/all", subfolder="vlm").budget == 5
assert TokenPrunerConfig.from_pretrained("all", subfolder="vlm").budget == 5
for place in ("tester/all", "all"):
    again, its = load_token_pruned(place, subfolder="vlm")
    assert again.token_pruner.config == its.token_pruner.config == TokenPrunerConfig(budget=5)
"""
    with LocalHub() as hub:
        environment = {**hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert {CONFIG_FILE, "adapter_config.json"} <= set(hub.repos["tester/adapter"])


def test_subfolders_of_local_folders_are_read(tmp_path):
    TokenPrunerConfig(budget=5).save_pretrained(tmp_path / "here")
    assert TokenPrunerConfig.from_pretrained(tmp_path, subfolder="here").budget == 5
    with pytest.raises(FileNotFoundError, match=r"No token_pruner_config\.json in '.*elsewhere'"):
        TokenPrunerConfig.from_pretrained(tmp_path, subfolder="elsewhere")


@pytest.mark.parametrize("adapter", [False, True])
def test_a_trainers_checkpoints_have_the_pruner(adapter, saved, tmp_path):
    from transformers import Trainer, TrainingArguments

    model, processor = loaded(saved)
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=5))
    model = adapted(model) if adapter else model
    inputs = processor(**prompts("llava", [[0]]))
    row = {**{k: v[0] for k, v in inputs.items()}, "labels": inputs["input_ids"][0]}
    training = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=1, save_steps=1, report_to="none", use_cpu=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(model=model, args=training, train_dataset=[row] * 2, processing_class=processor)
    trainer.train()
    again, its_processor = load_token_pruned(tmp_path / "run" / "checkpoint-1")
    assert isinstance(again, peft.PeftModel) == adapter
    assert again.token_pruner.config == its_processor.token_pruner.config == TokenPrunerConfig(budget=5)
    assert torch.allclose(logits(again.eval(), inputs), logits(model.eval(), inputs), atol=1e-5)
