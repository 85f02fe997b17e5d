"""Layers that are more than their kind: subclasses with a forward of their own, stacks of matrices, tied weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from transformers import (
    AutoModelForCausalLM,
    JetMoeConfig,
    JetMoeForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    PreTrainedModel,
)

from hf_efficient import BiDSTConfig, train_sparsely
from hf_efficient.sparsity.tuner.layer import BiDSTLayer
from tests.sparsity.models import IDS, disturb, layers, llama, logits
from tests.sparsity.tuner.test_experts import SIZES, qwen

BOTH = pytest.mark.parametrize("target", ["weight", "delta"])


class Scaled(nn.Linear):
    """Returns two tensors, as the routers of Llama 4 and Phi-MoE do."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out = super().forward(x)
        return 2 * out, out


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Scaled(16, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        twice, once = self.first(x)
        out: Tensor = self.second(twice + once)
        return out


@BOTH
@pytest.mark.parametrize("backend", ["dense", "csr"])
def test_a_linear_layer_with_a_forward_of_its_own_keeps_it(target: str, backend: str) -> None:
    settings = {"target": target, "backend": backend, "init": "random", "target_modules": ["first"]}
    model = get_peft_model(Routed(), BiDSTConfig(sparsity=0.7, train_others=False, **settings))
    disturb(model)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    layer = model.base_model.model.first
    weight = layer.effective(["default"])[0].detach().requires_grad_(True)
    bias = layer.effective(["default"])[1]
    expected = model.base_model.model.second(3 * (x @ weight.T + bias))
    torch.testing.assert_close(model.train()(x), expected)
    model(x).square().sum().backward()
    expected.square().sum().backward()
    sparse = layer.sparse_weight("default")
    torch.testing.assert_close(sparse.values.grad, weight.grad.flatten()[sparse.long_indices])
    merged = model.merge_and_unload()
    assert type(merged.first) is Scaled
    torch.testing.assert_close(merged(x), expected)


def jetmoe() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {key: SIZES[key] for key in ("vocab_size", "num_hidden_layers", "max_position_embeddings")}
    config = JetMoeConfig(
        **sizes, hidden_size=16, num_key_value_heads=2, kv_channels=8, intermediate_size=24, num_local_experts=4,
        num_experts_per_tok=2, tie_word_embeddings=False,
    )  # fmt: skip
    return JetMoeForCausalLM(config).eval()


def llama4() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        **{**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2},
        intermediate_size=24, intermediate_size_mlp=24, num_local_experts=4,
    )  # fmt: skip
    model = Llama4ForCausalLM(config).eval()
    for parameter in model.parameters():  # some start uninitialized, or at zero
        nn.init.normal_(parameter, std=0.2)
    return model


def steps(model: Any, optimizer: torch.optim.Optimizer, count: int, save_after: int = 0) -> tuple[Any, Any]:
    """Train; returns copies of both state dicts after some steps."""
    saved = None
    for step in range(1, count + 1):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == save_after:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    return saved or ({}, {})


@BOTH
@pytest.mark.parametrize("make", [jetmoe, llama4])
def test_other_stacks_of_experts_are_trained_saved_loaded_and_merged(make: Any, target: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "base")
    names = ["input_linear", "output_linear"] if make is jetmoe else ["experts", "router"]
    config = BiDSTConfig(
        sparsity=0.8, target=target, init="random", target_modules=names, update_interval=3, task_type="CAUSAL_LM",
        train_others=False,
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    training = train_sparsely(model, optimizer, 12)
    saved = steps(model, optimizer, 12, save_after=5)
    resumed = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).train()
    resumed.load_state_dict(saved[0])
    optimizer = torch.optim.AdamW([p for p in resumed.parameters() if p.requires_grad], lr=1e-2)
    optimizer.load_state_dict(saved[1])
    train_sparsely(resumed, optimizer, 12)
    steps(resumed, optimizer, 7)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in resumed.state_dict().items())
    assert training.report()["mask_updates"]
    entries = sum(layer.sparse_weight("default").numel for layer in layers(model).values())
    active = sum(len(layer.sparse_weight("default").indices) for layer in layers(model).values())
    assert training.report()["sparsity"] == pytest.approx(1 - active / entries)
    assert active == pytest.approx(0.2 * entries, abs=len(layers(model)))
    expected = logits(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))), expected)
    by_hand = make()
    with torch.no_grad():
        for name, layer in layers(model).items():
            path = name.removeprefix("base_model.model.").replace(".base_layer", "")
            getattr(by_hand.get_submodule(path), layer.parameter).copy_(layer.effective(["default"])[0])
    torch.testing.assert_close(logits(by_hand), expected)
    assert torch.equal(logits(model.merge_and_unload()), expected)


def test_each_matrix_of_a_stack_is_a_layer_and_its_inputs_are_known() -> None:
    """By what an input multiplies: a perturbed input changes the outputs through these entries alone."""
    model = get_peft_model(
        jetmoe(), BiDSTConfig(sparsity=0.5, init="random", target_modules=["input_linear"], train_others=False)
    )
    layer = next(iter(layers(model).values()))
    experts, outputs, inputs = layer.get_base_weight().shape
    assert layer.sparse_weight("default").matrix == (experts, outputs, inputs)
    assert layer.sparse_weight("default").input_dim == 1
    model = get_peft_model(
        llama4(), BiDSTConfig(sparsity=0.5, init="random", target_modules=["experts"], train_others=False)
    )
    for layer in layers(model).values():
        base, weight = layer.get_base_weight(), layer.sparse_weight("default")
        gradient = torch.autograd.grad(
            torch.bmm(torch.eye(base.shape[1])[None, :1].expand(len(base), 1, -1), base.requires_grad_(True)).sum(),
            base,
        )[0]
        of_first_input = gradient.flatten().nonzero().flatten()
        assert set(weight.input_of(of_first_input).tolist()) == {e * base.shape[1] for e in range(len(base))}


def test_lora_on_parameters_below_is_refused() -> None:
    lora = LoraConfig(target_parameters=["experts.gate_up_proj"], target_modules=["q_proj"])
    model = get_peft_model(qwen(), lora)
    config = BiDSTConfig(target="delta", sparsity=0.9, init="random", target_modules=["experts"])
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.experts'.*target_parameters.*merge_and_unload"):
        get_peft_model(model, config)


def untied(model: Any) -> Any:
    """As the message of the refusal says."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    model.config.tie_word_embeddings = False
    return model


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_tied_weights_are_refused_with_advice_that_works(name: str, tmp_path: Path) -> None:
    config = BiDSTConfig(target="delta", sparsity=0.9, init="random", target_modules=[name], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"is shared.*\.lm_head\.weight = torch\.nn\.Parameter.*tie_word_embeddings"):
        get_peft_model(llama(tied=True), config)
    plain = logits(llama(tied=True))
    model = untied(llama(tied=True))
    assert torch.equal(logits(model), plain)
    model.save_pretrained(tmp_path / "base")
    model = get_peft_model(model, config)
    disturb(model)
    expected = logits(model)
    assert not torch.equal(expected, plain)
    model.save_pretrained(str(tmp_path / "adapter"))
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))), expected)
    merged = model.merge_and_unload()
    assert torch.equal(logits(merged), expected)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)


@BOTH
def test_an_embedding_with_sparse_gradients_learns_as_a_dense_one(target: str) -> None:
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(10, 8, sparse=sparse), nn.Linear(8, 3))
        config = BiDSTConfig(
            target=target, sparsity=0.5, target_modules=["0"], update_interval=2, init="random", train_others=False
        )
        model = get_peft_model(net, config)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        training = train_sparsely(model, optimizer, 20)
        for _ in range(20):
            model(torch.tensor([1, 4, 4, 7])).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert training.report()["mask_updates"]
        layer: BiDSTLayer = model.base_model.model[0]
        found.append(layer.effective(["default"])[0].detach())
    assert torch.equal(*found)


def test_an_embedding_that_changes_its_weight_in_the_forward_is_refused() -> None:
    net = nn.Sequential(nn.Embedding(10, 8, max_norm=1.0), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"'0'.*max_norm=1\.0.*exclude_modules"):
        get_peft_model(net, BiDSTConfig(target="delta", sparsity=0.5, target_modules=["0"]))


@BOTH
@pytest.mark.parametrize("how", ["prune", "weight_norm", "spectral_norm"])
def test_a_weight_that_is_computed_is_refused_with_advice_that_works(how: str, target: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    if how == "prune":
        prune.l1_unstructured(model[0], "weight", amount=0.5)
    else:
        getattr(parametrizations, how)(model[0])
    config = BiDSTConfig(target=target, sparsity=0.5, init="random", target_modules=["0"])
    with pytest.raises(ValueError, match=r"'0', whose weight is computed.*remove_parametrizations.*exclude_modules"):
        get_peft_model(model, config)
    if how == "prune":
        prune.remove(model[0], "weight")
    else:
        parametrize.remove_parametrizations(model[0], "weight")
    adapted = get_peft_model(model, config)
    disturb(adapted)
    x = torch.randn(4, 8)
    expected = adapted(x)
    assert torch.equal(adapted.merge_and_unload()(x), expected)
