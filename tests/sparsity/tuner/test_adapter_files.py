"""Adapters in files: every loader brings back what was saved, bit for bit, and damaged tensors are found."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, HfArgumentParser

from hf_efficient import BiDSTConfig
from tests.adapters import BY_TRANSFORMERS
from tests.sparsity.models import (
    DELTA,
    WEIGHT,
    bert,
    config_of,
    disturb,
    few_steps,
    layers,
    llama,
    logits,
)


@pytest.fixture
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, torch.Tensor]:
    """An adapter of a tiny Llama with an uneven topology, and the outputs it gives."""
    llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, config_of(request.param, distribution="erk"))
    disturb(model)
    first = next(iter(layers(model).values())).sparse_weight("default")
    first.resize(torch.arange(3), torch.tensor([n for n in range(40) if n not in first.long_indices[:3].tolist()][:9]))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, logits(model)


SAVED = pytest.mark.parametrize("saved", [DELTA, WEIGHT], ids=["delta", "weight"], indirect=True)


@SAVED
def test_peft_loads_what_it_saved(saved: tuple[Path, torch.Tensor]) -> None:
    folder, expected = saved
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    for low in (False, True):
        model = PeftModel.from_pretrained(copy.deepcopy(base), folder / "adapter", low_cpu_mem_usage=low)
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")), expected)
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["peft_type"] == "BIDST"
    assert isinstance(PeftConfig.from_pretrained(folder / "adapter"), BiDSTConfig)


@SAVED
def test_transformers_loads_what_peft_saved(saved: tuple[Path, torch.Tensor]) -> None:
    folder, expected = saved
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    model.load_adapter(str(folder / "adapter"))
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder / "adapter")), expected)


@BY_TRANSFORMERS
def test_transformers_adds_saves_and_loads_an_adapter_itself(tmp_path: Path) -> None:
    model = llama()
    model.add_adapter(config_of(DELTA), adapter_name="a")
    disturb(model, "a")
    expected = logits(model)
    model.save_pretrained(tmp_path)
    again = llama()
    again.load_adapter(str(tmp_path))
    assert torch.equal(logits(again), expected)


def test_state_dict_goes_into_an_injected_model() -> None:
    model = get_peft_model(llama(), config_of(WEIGHT, train_others=False))
    disturb(model)
    state, expected = get_peft_model_state_dict(model), logits(model)
    assert not any("default" in key or "base_layer" in key for key in state)
    other = inject_adapter_in_model(config_of(WEIGHT, train_others=False, init="random"), llama())
    set_peft_model_state_dict(other, state)
    assert torch.equal(logits(other), expected)


def test_hostile_indices_are_refused_before_they_are_used(tmp_path: Path) -> None:
    model = get_peft_model(llama(), config_of(WEIGHT))
    state = get_peft_model_state_dict(model)
    name = next(key for key in state if key.endswith("indices"))
    state[name] = state[name].clone()
    state[name][0] = 2**31 - 1
    model.peft_config["default"].checksum = None  # whoever forges a file forges its checksum too
    with pytest.raises(ValueError, match="indices of the active weights are damaged"):
        set_peft_model_state_dict(model, state)
    layer = next(iter(layers(model).values()))
    layer.sparse_weight("default").indices[0] = 2**31 - 1  # transformers' own loader asks nobody
    layer.backend["default"].backend = "csr"
    with pytest.raises(ValueError, match="indices of the active weights are damaged"):
        layer.train()(torch.randn(2, 32))


def test_a_changed_tensor_is_found_by_the_checksum(tmp_path: Path) -> None:
    model = get_peft_model(llama(), config_of(WEIGHT))
    for part in ("values", "embed_tokens.weight"):
        state = get_peft_model_state_dict(model)
        name = next(key for key in state if key.endswith(part))
        state[name] = state[name].clone()
        state[name].flatten()[0] += 1
        with pytest.raises(ValueError, match=r'checksum differs.*"checksum" to null'):
            set_peft_model_state_dict(model, state)


def test_modules_to_save_are_trained_and_saved(tmp_path: Path) -> None:
    model = get_peft_model(bert(), BiDSTConfig(target="delta", sparsity=0.9, task_type="SEQ_CLS"))
    disturb(model)
    model.save_pretrained(tmp_path)
    assert "base_model.model.classifier.weight" in load_file(tmp_path / "adapter_model.safetensors")
    again = PeftModel.from_pretrained(bert(), tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_tied_embeddings_stay_tied_when_everything_trains(tmp_path: Path) -> None:
    model = get_peft_model(llama(tied=True), BiDSTConfig(sparsity=0.8, task_type="CAUSAL_LM"))
    few_steps(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(llama(tied=True), tmp_path)), expected)
    merged = model.merge_and_unload()
    assert torch.equal(logits(merged), expected)
    assert merged.lm_head.weight.data_ptr() == merged.model.embed_tokens.weight.data_ptr()


def test_config_goes_through_files_parsers_and_copies(tmp_path: Path) -> None:
    config = BiDSTConfig(
        sparsity=0.9, target="delta", topology="rigl", target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    config.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert {**again.to_dict(), "target_modules": None} == {**config.to_dict(), "target_modules": None}
    assert again.target_modules == {"q_proj"}
    assert pickle.loads(pickle.dumps(PeftType("BIDST"))) is PeftType.BIDST
    assert copy.deepcopy(config).peft_type is PeftType.BIDST
    (parsed,) = HfArgumentParser([BiDSTConfig]).parse_args_into_dataclasses(["--sparsity", "0.5", "--topology", "set"])
    assert (parsed.sparsity, parsed.topology) == (0.5, "set")
