"""Attached models and processors save, load, copy and pickle as the stock objects they are."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_efficient import TokenPrunerConfig, attach_token_pruner, detach_token_pruner, load_token_pruned
from tests.local_hub import LocalHub
from tests.tiny import FAMILIES, ROWS, budget, generate, prompts, pruned, stock

CONFIG_FILE = "token_pruner_config.json"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_attached_pair_saves_the_stock_files_and_its_config(name, tmp_path):
    for attached, folder in ((False, tmp_path / "stock"), (True, tmp_path / "pruned")):
        model, processor = stock(name)
        if attached:
            attach_token_pruner(model, processor, TokenPrunerConfig(budget=budget(name)))
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    plain, ours = files(tmp_path / "stock"), files(tmp_path / "pruned")
    assert json.loads(ours.pop(CONFIG_FILE)) == TokenPrunerConfig(budget=budget(name)).to_dict()
    assert b"load_token_pruned" in ours.pop("README.md")
    assert ours == plain
    assert json.loads(ours["config.json"])["architectures"] == [type(model).__name__]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_pair_comes_back_with_its_pruner(name, tmp_path):
    model, processor = pruned(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = load_token_pruned(tmp_path)
    assert loaded.base_model.token_pruner.config == model.base_model.token_pruner.config
    inputs = processor(**prompts(name, ROWS))
    again = loaded_processor(**prompts(name, ROWS))
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**again).logits, model(**inputs).logits)


def test_a_pair_is_loaded_with_a_config_of_any_form(tmp_path):
    model, processor = stock("llava")
    model.save_pretrained(tmp_path / "stock")
    processor.save_pretrained(tmp_path / "stock")
    config = TokenPrunerConfig(budget=3)
    config.save_pretrained(tmp_path / "pruner")
    for given in (config, config.to_dict(), tmp_path / "pruner", str(tmp_path / "pruner")):
        loaded, _ = load_token_pruned(tmp_path / "stock", given)
        assert loaded.base_model.token_pruner.config == config
    with pytest.raises(ValueError, match="Unknown token pruner settings"):
        load_token_pruned(tmp_path / "stock", {"budgets": 3})


def test_plain_transformers_loads_an_attached_folder_as_stock(tmp_path):
    model, processor = pruned("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain, plain_processor = (
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    )
    assert type(plain) is type(stock("llava")[0])
    inputs = plain_processor(**prompts("llava", ROWS))
    reference, reference_processor = stock("llava")
    expected = generate(reference, reference_processor(**prompts("llava", ROWS)))
    assert torch.equal(generate(plain.eval(), inputs), expected)


def test_an_attached_class_builds_and_loads_stock_objects(tmp_path):
    model, processor = pruned("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reference, reference_processor = stock("llava")
    plain, plain_processor = type(model).from_pretrained(tmp_path), type(processor).from_pretrained(tmp_path)
    assert (type(plain), type(plain_processor)) == (type(reference), type(reference_processor))
    assert type(type(model)(model.config)) is type(reference)


def test_loading_takes_a_config_and_arguments_of_the_model(tmp_path):
    model, processor = stock("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=CONFIG_FILE):
        load_token_pruned(tmp_path)
    loaded, _ = load_token_pruned(tmp_path, TokenPrunerConfig(budget=3), dtype=torch.bfloat16, local_files_only=True)
    assert loaded.dtype == torch.bfloat16
    assert loaded.base_model.token_pruner.config.budget == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_are_attached_and_independent(name):
    model, processor = pruned(name)
    inputs = processor(**prompts(name, ROWS))
    expected = model(**inputs).logits
    twin, twin_processor = copy.deepcopy(model), copy.deepcopy(processor)
    assert type(twin) is type(model)
    assert type(twin_processor) is type(processor)
    detach_token_pruner(model, processor)
    again = twin_processor(**prompts(name, ROWS))
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(twin(**again).logits, expected)
    assert twin.base_model.token_pruner.last


@pytest.mark.parametrize("name", FAMILIES)
def test_pickled_pairs_come_back_attached(name):
    pair = pruned(name)
    pickled = pickle.dumps(pair)  # before the first call, at which transformers installs hooks that cannot be pickled
    inputs = pair[1](**prompts(name, ROWS))
    expected = pair[0](**inputs).logits
    model, processor = pickle.loads(pickled)
    again = processor(**prompts(name, ROWS))
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(model(**again).logits, expected)


def test_pickles_open_in_a_fresh_process(tmp_path):
    """As in the workers of a data loader, where the class made at run time does not exist yet."""
    model, processor = pruned("llava")
    ids = processor(**prompts("llava", [[0]]))["input_ids"]
    with open(tmp_path / "pair.pkl", "wb") as file:
        pickle.dump((model, processor, prompts("llava", [[0]]), ids), file)
    code = f"""
import pickle, torch
model, processor, prompt, ids = pickle.load(open({str(tmp_path / "pair.pkl")!r}, "rb"))
assert torch.equal(processor(**prompt)["input_ids"], ids)
assert model.base_model.token_pruner.config == processor.token_pruner.config
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_saving_with_push_to_hub_uploads_the_config_too(tmp_path):
    """Stock saving uploads before it returns, when the pruner's config would not yet be there."""
    code = """
from tests.tiny import pruned
model, processor = pruned("llava")
model.save_pretrained("model", push_to_hub=True, commit_message="one")
processor.save_pretrained("processor", push_to_hub=True, repo_id="tester/model")
"""
    root = Path(__file__).parents[2]
    with LocalHub() as hub:
        environment = {**hub.environment(tmp_path / "home"), "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert {CONFIG_FILE, "config.json", "model.safetensors", "processor_config.json"} <= set(
            hub.repos["tester/model"]
        )


def test_a_failed_save_leaves_no_broken_config(tmp_path):
    model, _ = pruned("llava")
    (tmp_path / "file").write_text("")
    with pytest.raises((ValueError, OSError, AssertionError)):
        model.save_pretrained(tmp_path / "file" / "folder")
    assert not list(tmp_path.rglob(CONFIG_FILE))
