"""Merging, unmerging, disabling, and several adapters side by side."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    get_peft_model,
)
from torch import nn
from transformers import AutoModelForCausalLM

from hf_efficient import BiDSTConfig
from tests.sparsity.models import (
    DELTA,
    WEIGHT,
    config_of,
    disturb,
    few_steps,
    layers,
    llama,
    logits,
)

BOTH = pytest.mark.parametrize("settings", [DELTA, WEIGHT], ids=["delta", "weight"])


def test_a_pruned_model_keeps_exactly_its_zeros_through_training_and_merging() -> None:
    model = llama()
    with torch.no_grad():
        for module in model.model.layers.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(torch.rand(module.weight.shape) < 0.3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model = get_peft_model(model, BiDSTConfig(distribution="as_pruned", topology="static"))
    expected = logits(model)
    few_steps(model)
    merged = model.merge_and_unload()
    assert not torch.equal(logits(merged), expected)
    for name, parameter in merged.named_parameters():
        if "_proj" in name:
            assert torch.equal(parameter != 0, before[name] != 0), name


@BOTH
@pytest.mark.parametrize("safe", [False, True])
def test_merging_gives_a_plain_model_with_the_same_outputs_bit_for_bit(
    settings: dict[str, Any], safe: bool, tmp_path: Path
) -> None:
    model = get_peft_model(llama(), config_of(settings))
    disturb(model)
    expected = logits(model)
    zeros = {n: int((~layer.sparse_weight("default").mask()).sum()) for n, layer in layers(model).items()}
    plain = model.merge_and_unload(safe_merge=safe)
    assert type(plain) is type(llama())
    assert torch.equal(logits(plain), expected)
    if settings is WEIGHT:
        for name, count in zeros.items():
            weight = plain.get_submodule(name.removeprefix("base_model.model.")).weight
            assert int((weight == 0).sum()) == count
    plain.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)


@BOTH
def test_unmerging_brings_the_base_back_bit_for_bit(settings: dict[str, Any]) -> None:
    model = get_peft_model(llama(), config_of(settings))
    disturb(model)
    expected, before = logits(model), copy.deepcopy(model.state_dict())
    model.base_model.merge_adapter()
    assert torch.equal(logits(model), expected)
    model.base_model.unmerge_adapter()
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(logits(model), expected)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.base_model.unmerge_adapter()


def test_safe_merge_refuses_what_is_not_finite_and_plain_merge_does_not() -> None:
    model = get_peft_model(llama(), config_of(DELTA))
    next(iter(layers(model).values())).sparse_weight("default").values.data[0] = torch.inf
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    assert not logits(model.merge_and_unload()).isfinite().all()


@BOTH
def test_disabling_shows_the_base_model(settings: dict[str, Any]) -> None:
    model, plain = get_peft_model(llama(), config_of(settings, train_others=False)), logits(llama())
    disturb(model)
    expected = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), expected)
    assert not torch.equal(expected, plain)
    assert torch.equal(logits(model.unload()), plain)


def test_several_adapters_live_side_by_side() -> None:
    model = get_peft_model(llama(), config_of(DELTA))
    disturb(model)
    first = logits(model)
    model.add_adapter("second", config_of(DELTA, target_modules=["q_proj", "gate_proj"], seed=1))
    assert torch.equal(logits(model), first)
    disturb(model, "second")
    model.set_adapter("second")
    second = logits(model)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all(".second." in n for n in trainable)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    assert not torch.allclose(both, first)
    model.base_model.merge_adapter(["default", "second"])
    assert torch.allclose(logits(model), both, atol=1e-5)
    model.base_model.unmerge_adapter()
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), first)
    assert not torch.equal(first, second)


def test_two_adapters_that_replace_the_weight_cannot_both_be_active() -> None:
    model = get_peft_model(llama(), config_of(WEIGHT, train_others=False))
    model.add_adapter("second", config_of(WEIGHT, train_others=False))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"'default', 'second'.*target='weight'"):
        logits(model)


def test_two_whole_sparse_models_live_side_by_side() -> None:
    """Each has weights, norms, embeddings and head of its own."""
    model = get_peft_model(llama(), config_of(WEIGHT))
    disturb(model)
    first = logits(model)
    model.add_adapter("second", config_of(WEIGHT, sparsity=0.5))
    disturb(model, "second")
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert not torch.equal(logits(model), first)
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_a_delta_on_top_of_a_sparse_weight() -> None:
    model = get_peft_model(llama(), config_of(WEIGHT, train_others=False))
    expected = logits(model)
    model.add_adapter("delta", config_of(DELTA))
    model.base_model.set_adapter(["delta", "default"])
    assert torch.equal(logits(model), expected)
    disturb(model, "delta")
    expected = logits(model)
    assert torch.equal(logits(model.merge_and_unload()), expected)
