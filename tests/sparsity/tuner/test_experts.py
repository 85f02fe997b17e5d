"""Fused experts, parameters of three dimensions: sparse and with deltas, in all that PEFT does."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Trainer,
)

from hf_efficient import BiDSTConfig, load_sparse, save_sparse, train_sparsely
from hf_efficient.methods import SPARSITY, settings_of
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.topology.levels import input_levels
from tests.sparsity.models import IDS, disturb, few_steps, layers, logits
from tests.sparsity.tuner.test_trainer import Sentences, arguments

pytestmark = pytest.mark.filterwarnings("ignore:.*lie directly in:UserWarning")  # GPT-OSS' attention sinks
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, intermediate_size=24
    )
    return Qwen3MoeForCausalLM(config).eval()


def mixtral() -> PreTrainedModel:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, intermediate_size=24)).eval()


def gpt_oss() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, intermediate_size=24, sliding_window=8)
    return GptOssForCausalLM(config).eval()


MODELS = {"qwen": qwen, "mixtral": mixtral, "gpt_oss": gpt_oss}
EVERY = pytest.mark.parametrize("name", MODELS)
BOTH = pytest.mark.parametrize("target", ["weight", "delta"])


def adapted(name: str, target: str, **more: Any) -> PeftModel:
    settings: dict[str, Any] = {"sparsity": 0.8, "init": "random", "target": target, "task_type": "CAUSAL_LM"}
    if target == "delta":
        settings["target_modules"] = ["experts", "q_proj"]
    return get_peft_model(MODELS[name](), BiDSTConfig(**{**settings, **more})).eval()


def experts(model: Any) -> nn.Module:
    found: nn.Module = next(m for n, m in model.named_modules() if n.endswith(".experts"))
    return found


@EVERY
def test_default_targets_take_the_experts(name: str) -> None:
    """The sparsity that is asked for is that of the model, but for what is meant to stay dense."""
    model = adapted(name, "weight")
    plain = copy.deepcopy(model).merge_and_unload()
    experts_ = experts(plain)
    for parameter in (experts_.gate_up_proj, experts_.down_proj):
        assert float((parameter == 0).float().mean()) > 0.5
    entries = sum(layer.sparse_weight("default").numel for layer in layers(model).values())
    zeros = sum(int((p == 0).sum()) for n, p in plain.named_parameters() if p.dim() > 1 and "bias" not in n)
    assert zeros / entries == pytest.approx(0.8, abs=0.01)
    assert {n.rpartition(".")[2] for n in layers(model)} >= {"q_proj", "o_proj", "experts"}
    assert entries > 0.5 * sum(p.numel() for p in plain.parameters())


@BOTH
@EVERY
def test_the_module_is_computed_with_the_effective_tensors(name: str, target: str) -> None:
    """As the plain model with these tensors in it is; in every implementation; and merged and unmerged."""
    model = adapted(name, target)
    disturb(model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    expected = logits(model)
    with torch.no_grad():
        by_hand = MODELS[name]()
        by_hand.load_state_dict(copy.deepcopy(model).merge_and_unload().state_dict())
    assert torch.equal(logits(by_hand), expected)
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model.base_model.model.set_experts_implementation(implementation)
        by_hand.set_experts_implementation(implementation)
        assert torch.equal(logits(model), logits(by_hand))
    assert not torch.allclose(logits(MODELS[name]()), expected)
    with model.disable_adapter():
        off = logits(model)
    if target == "delta":
        assert torch.equal(off, logits(MODELS[name]()))
    model.merge_adapter()
    assert torch.allclose(logits(model), expected, atol=1e-6)
    model.unmerge_adapter()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@BOTH
@EVERY
def test_gradients_are_those_of_the_tensors(name: str, target: str) -> None:
    """Of the active weights, as autograd has them of the plain model."""
    model = adapted(name, target, train_others=False)
    disturb(model)
    plain = copy.deepcopy(model).merge_and_unload().requires_grad_(True)
    for each in (model, plain):
        each(input_ids=IDS, labels=IDS).loss.backward()
    truth = dict(experts(plain).named_parameters())
    found = [layer for n, layer in layers(model).items() if ".experts" in n]
    assert {layer.parameter for layer in found} == {"gate_up_proj", "down_proj"}
    for layer in found:
        weight = layer.sparse_weight("default")
        dense = truth[layer.parameter].grad.flatten()[weight.long_indices]
        assert dense.any()
        torch.testing.assert_close(weight.values.grad, dense)
        if target == "weight" and name == "gpt_oss":
            bias = truth[f"{layer.parameter}_bias"].grad
            torch.testing.assert_close(layer.bidst_bias["default"].grad, bias)


@BOTH
@EVERY
def test_files_bring_it_back(name: str, target: str, tmp_path: Path) -> None:
    MODELS[name]().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = {"target_modules": ["experts", "q_proj"]} if target == "delta" else {}
    config = BiDSTConfig(sparsity=0.8, init="random", target=target, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(base, config)
    disturb(model)
    expected = logits(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    assert any(key.endswith("experts") for key in model.peft_config["default"].counts)
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))), expected)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))), expected)
    if target == "weight":
        plain = model.merge_and_unload()
        save_sparse(plain, tmp_path / "sparse")
        assert torch.equal(logits(load_sparse(tmp_path / "sparse")), logits(plain))


@pytest.mark.parametrize("topology", ["bidst", "rigl", "gmp"])
def test_experts_exchange_weights_and_keep_their_budget(topology: str) -> None:
    init = settings_of(SPARSITY, topology, init="random")
    config = BiDSTConfig(sparsity=0.8, topology=topology, update_interval=3, **init)
    model = get_peft_model(qwen(), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    training = train_sparsely(model, optimizer, 20)
    before = {n: layer.sparse_weight("default").indices.clone() for n, layer in layers(model).items()}
    for _ in range(20):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert training.report()["mask_updates"] >= 3
    assert training.report()["sparsity"] == pytest.approx(0.8, abs=1e-2)
    moved = {
        n for n, layer in layers(model).items() if not torch.equal(layer.sparse_weight("default").indices, before[n])
    }
    assert sum(".experts" in name for name in moved) == 2


def test_a_delta_of_experts_trains_under_the_trainer_beside_a_second_adapter(tmp_path: Path) -> None:
    model = adapted("mixtral", "delta", update_interval=3, init="snip")
    second = BiDSTConfig(sparsity=0.9, init="random", target="delta", target_modules=["experts"])
    model.add_adapter("second", second)
    trainer = Trainer(model, arguments(tmp_path, max_steps=12), train_dataset=Sentences())
    trainer.train()
    assert trainer.state.log_history[-2]["model_sparsity"] > 0.8
    model.base_model.set_adapter(["default", "second"])
    disturb(model, "second")
    both = logits(model)
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=["default", "second"])
    torch.testing.assert_close(logits(merged), both, atol=1e-5, rtol=1e-4)
    model.delete_adapter("second")
    assert not torch.equal(logits(model), both)


def test_without_the_experts_it_is_said() -> None:
    with pytest.warns(UserWarning, match=r"leaves out \d\d% of the model's weights.*target_modules=\[..., 'experts'\]"):
        adapted("qwen", "delta", target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted("qwen", "weight")
    with pytest.warns(UserWarning, match=r"\['sinks'\] lie directly in 'model.layers.0.self_attn' and stay frozen"):
        adapted("gpt_oss", "weight")


def test_the_budget_counts_each_expert_as_a_layer_of_its_own() -> None:
    """ERK of four small matrices, not of one tensor with a fifth of their edges."""
    model = adapted("qwen", "weight", target_modules=["experts"], train_others=False)
    got = {layer.parameter: len(layer.sparse_weight("default").indices) for layer in layers(model).values()}
    raw = {"gate_up_proj": 48 + 16, "down_proj": 16 + 24}
    assert got["gate_up_proj"] / got["down_proj"] == pytest.approx(raw["gate_up_proj"] / raw["down_proj"], rel=0.01)
    assert sum(got.values()) == round(0.2 * 4 * (48 * 16 + 16 * 24))


@pytest.mark.parametrize("inputs_first", [False, True])
def test_inputs_of_experts_are_told_apart(inputs_first: bool) -> None:
    weight = SparseWeight((3, 4, 5), 6)
    weight.set_expert_layout(inputs_first)
    inputs = 4 if inputs_first else 5
    assert weight.inputs == 3 * inputs
    indices = torch.arange(60)
    expert, row, column = indices // 20, indices // 5 % 4, indices % 5
    assert torch.equal(weight.input_of(indices), expert * inputs + (row if inputs_first else column))
    gradient = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    levels = gradient.square().mean(2 if inputs_first else 1).flatten() / gradient.square().mean()
    whole = gradient.transpose(0, 1).flatten(1) if not inputs_first else gradient.flatten(0, 1)
    torch.testing.assert_close(input_levels(whole, 0 if inputs_first else 1), levels.sqrt())


def test_few_steps_learn() -> None:
    model = adapted("gpt_oss", "weight", topology="static").train()
    before = float(model(input_ids=IDS, labels=IDS).loss)
    few_steps(model, 30)
    assert float(model(input_ids=IDS, labels=IDS).loss) < 0.8 * before
