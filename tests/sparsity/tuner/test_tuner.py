"""BiDST as a PEFT tuner: which layers, how many weights, and what each kind of layer computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from torch import nn

from hf_efficient import BiDSTConfig, BiDSTModel
from tests.sparsity.models import (
    DELTA,
    WEIGHT,
    ConvNet,
    bert,
    config_of,
    convnet_inputs,
    disturb,
    gpt2,
    layers,
    llama,
    logits,
    vit,
)


def test_a_fresh_delta_changes_nothing_and_a_fresh_weight_is_the_masked_base() -> None:
    expected = logits(llama())
    assert torch.equal(logits(get_peft_model(llama(), config_of(DELTA))), expected)
    model, plain = get_peft_model(llama(), config_of(WEIGHT)), llama()
    for name, layer in layers(model).items():
        active = layer.sparse_weight("default").mask()
        plain.get_submodule(name.removeprefix("base_model.model.")).weight.data.flatten()[~active] = 0
    assert torch.equal(logits(model), logits(plain))


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["q_proj", "v_proj"], 4),
        ("all-linear", 14),
        (r".*\.mlp\.\w+_proj", 6),
        (None, 4),
        (["layers.1.mlp.up_proj"], 1),
        (["embed_tokens"], 1),
    ],
)
def test_targets_of_a_delta(targets: Any, count: int) -> None:
    model = get_peft_model(llama(), BiDSTConfig(target="delta", sparsity=0.9, target_modules=targets))
    assert len(layers(model)) == count
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.bidst_weight.default.values" for name in layers(model)}


def test_weight_takes_all_but_embeddings_norms_and_heads_and_trains_the_rest_too() -> None:
    model = get_peft_model(llama(), BiDSTConfig(sparsity=0.9))
    assert len(layers(model)) == 14
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert all(".base_layer." in n or ".original_module." in n for n in frozen)
    model = get_peft_model(bert(), BiDSTConfig(sparsity=0.9, task_type="SEQ_CLS"))
    assert len(layers(model)) == 12
    assert not any("classifier" in name or "pooler" in name for name in layers(model))


def test_exclusions_and_block_numbers() -> None:
    model = get_peft_model(llama(), config_of(DELTA, exclude_modules=["down_proj", "up_proj"]))
    assert len(layers(model)) == 10
    model = get_peft_model(llama(), config_of(DELTA, target_modules=["q_proj"], layers_to_transform=[1]))
    assert list(layers(model)) == ["base_model.model.model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_the_budget_is_what_sparsity_says(distribution: str) -> None:
    model = get_peft_model(llama(), config_of(WEIGHT, distribution=distribution, sparsity=0.9))
    weights = [layer.sparse_weight("default") for layer in layers(model).values()]
    entries = sum(w.numel for w in weights)
    assert abs(sum(len(w.values) for w in weights) - 0.1 * entries) <= (
        len(weights) if distribution == "uniform" else 1
    )


def test_global_magnitude_is_one_threshold_for_all_layers() -> None:
    model = get_peft_model(llama(), config_of(WEIGHT, distribution="global", init="magnitude", sparsity=0.9))
    lowest = min(float(layer.sparse_weight("default").values.detach().abs().min()) for layer in layers(model).values())
    for layer in layers(model).values():
        inactive = layer.get_base_layer().weight.flatten()[~layer.sparse_weight("default").mask()]
        assert float(inactive.abs().max()) <= lowest + 1e-12


def test_sizes_are_exposed_as_by_other_tuners() -> None:
    names = ["conv1", "emb", "hidden"]
    model = get_peft_model(ConvNet(), BiDSTConfig(target="delta", sparsity=0.5, target_modules=names))
    sizes = {name.rpartition(".")[2]: (m.in_features, m.out_features) for name, m in layers(model).items()}
    assert sizes == {"conv1": (3, 8), "emb": (10, 72), "hidden": (72, 20)}
    linear = layers(get_peft_model(gpt2(), config_of(DELTA, target_modules=["c_fc"])))
    assert {(m.in_features, m.out_features) for m in linear.values()} == {(32, 128)}


@pytest.mark.parametrize("target", ["weight", "delta"])
def test_convolutions_and_embeddings_equal_a_plain_layer_with_the_merged_weight(target: str, tmp_path: Path) -> None:
    inputs = convnet_inputs()
    names = ["conv1", "conv2", "hidden"] + (["emb"] if target == "delta" else [])
    config = BiDSTConfig(target=target, sparsity=0.7, target_modules=names)
    model = get_peft_model(ConvNet(), config).eval()
    disturb(model)
    assert len(layers(model)) == len(names)
    with torch.no_grad():
        expected = model(*inputs)
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(ConvNet(), tmp_path).eval()(*inputs), expected)
        assert torch.equal(model.merge_and_unload()(*inputs), expected)


def test_batch_norm_statistics_are_saved_with_the_rest(tmp_path: Path) -> None:
    model = get_peft_model(ConvNet(), BiDSTConfig(sparsity=0.5, target_modules=["conv1", "conv2", "hidden"]))
    inputs = convnet_inputs()
    for _ in range(3):
        model.train()(*inputs).sum().backward()
    with torch.no_grad():
        expected = model.eval()(*inputs)
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(ConvNet(), tmp_path).eval()(*inputs), expected)


def test_vit_whose_embeddings_hold_parameters_of_their_own(tmp_path: Path) -> None:
    model = get_peft_model(vit(), BiDSTConfig(sparsity=0.8)).eval()
    assert "vit.embeddings" in model.peft_config["default"].modules_to_save
    disturb(model)
    pixels = torch.randn(2, 1, 14, 14)
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(vit(), tmp_path).eval()
        assert torch.equal(again(pixel_values=pixels).logits, expected)
        assert torch.equal(model.merge_and_unload()(pixel_values=pixels).logits, expected)


def test_torch_encoder_layers_do_not_bypass_the_adapter() -> None:
    """In eval mode nn.TransformerEncoderLayer would read the base weights without calling its layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True))
    model = get_peft_model(net, BiDSTConfig(target="delta", sparsity=0.5, target_modules=["linear1", "linear2"]))
    disturb(model)
    x = torch.randn(2, 3, 16)
    trained = model.train()(x).detach()
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), trained, atol=1e-6)


def test_conv1d_of_gpt2() -> None:
    model = get_peft_model(gpt2(), config_of(DELTA))
    assert len(layers(model)) == 8
    assert all(m.sparse_weight("default").input_dim == 0 for m in layers(model).values())  # it keeps (in, out)
    disturb(model)
    expected = logits(model)
    assert torch.equal(logits(model.merge_and_unload()), expected)


def test_bf16_base_keeps_fp32_values_and_integer_indices() -> None:
    model = get_peft_model(llama().to(torch.bfloat16), config_of(DELTA))
    weight = next(iter(layers(model).values())).sparse_weight("default")
    assert (weight.values.dtype, weight.indices.dtype) == (torch.float32, torch.int32)
    disturb(model)
    expected = logits(model)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(logits(model.merge_and_unload()), expected)


def test_the_model_class_is_the_public_one() -> None:
    assert isinstance(get_peft_model(llama(), config_of(DELTA)).base_model, BiDSTModel)


def test_a_config_can_be_used_for_another_model() -> None:
    config = BiDSTConfig(target="delta", sparsity=0.9, target_modules=["q_proj", "query"], distribution="uniform")
    get_peft_model_state_dict(get_peft_model(llama(), config))
    assert len(layers(get_peft_model(bert(), config))) == 2


@pytest.mark.parametrize("distribution", ["uniform", "global"])
def test_auto_starts_a_weight_by_magnitude(distribution: str) -> None:
    masks = []
    for init in ("auto", "magnitude"):
        model = get_peft_model(llama(), BiDSTConfig(sparsity=0.9, init=init, distribution=distribution))
        masks.append([layer.sparse_weight("default").long_indices.tolist() for layer in layers(model).values()])
    assert masks[0] == masks[1]


def test_a_static_delta_needs_an_engine_to_choose_its_mask() -> None:
    assert BiDSTConfig(topology="static", target="delta").needs_engine
    assert not BiDSTConfig(topology="static").needs_engine
