"""BiDST as a PEFT tuner: every way in, every way out, and what it refuses."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

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
from torch import nn
from transformers import AutoModelForCausalLM, HfArgumentParser

from hf_efficient import BiDSTConfig, BiDSTModel
from hf_efficient.sparsity.layer import BiDSTLayer
from tests.sparsity.models import ConvNet, bert, convnet_inputs, disturb, few_steps, gpt2, llama, logits, vit

DELTA = {"target": "delta", "sparsity": 0.9, "task_type": "CAUSAL_LM"}
WEIGHT = {"target": "weight", "sparsity": 0.8, "task_type": "CAUSAL_LM"}
BOTH = pytest.mark.parametrize("settings", [DELTA, WEIGHT], ids=["delta", "weight"])


def config_of(settings: dict[str, Any], **more: Any) -> BiDSTConfig:
    return BiDSTConfig(**{"target_modules": "all-linear", **settings, **more})


def layers(model: nn.Module) -> dict[str, BiDSTLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, BiDSTLayer)}


@pytest.fixture
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, torch.Tensor]:
    """An adapter of a tiny Llama with an uneven topology, and the outputs it gives."""
    llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, config_of(request.param, distribution="erk"))
    disturb(model)
    first = next(iter(layers(model).values())).sparse_weight("default")
    first.resize(torch.arange(3), torch.tensor([n for n in range(40) if n not in first.places[:3].tolist()][:9]))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, logits(model)


SAVED = pytest.mark.parametrize("saved", [DELTA, WEIGHT], ids=["delta", "weight"], indirect=True)


def test_a_fresh_delta_changes_nothing_and_a_fresh_weight_is_the_masked_base() -> None:
    expected = logits(llama())
    assert torch.equal(logits(get_peft_model(llama(), config_of(DELTA))), expected)
    model, plain = get_peft_model(llama(), config_of(WEIGHT)), llama()
    for name, layer in layers(model).items():
        alive = layer.sparse_weight("default").alive()
        plain.get_submodule(name.removeprefix("base_model.model.")).weight.data.flatten()[~alive] = 0
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
    places = sum(w.numel for w in weights)
    assert abs(sum(len(w.values) for w in weights) - 0.1 * places) <= (len(weights) if distribution == "uniform" else 1)


def test_global_magnitude_is_one_threshold_for_all_layers() -> None:
    model = get_peft_model(llama(), config_of(WEIGHT, distribution="global", init="magnitude", sparsity=0.9))
    lowest = min(float(layer.sparse_weight("default").values.detach().abs().min()) for layer in layers(model).values())
    for layer in layers(model).values():
        dead = layer.get_base_layer().weight.flatten()[~layer.sparse_weight("default").alive()]
        assert float(dead.abs().max()) <= lowest + 1e-12


def test_a_pruned_model_keeps_exactly_its_zeros_through_training_and_merging() -> None:
    model = llama()
    with torch.no_grad():
        for module in model.model.layers.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(torch.rand(module.weight.shape) < 0.3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model = get_peft_model(model, BiDSTConfig(distribution="nonzero", topology="static"))
    expected = logits(model)
    few_steps(model)
    merged = model.merge_and_unload()
    assert not torch.equal(logits(merged), expected)
    for name, parameter in merged.named_parameters():
        if "_proj" in name:
            assert torch.equal(parameter != 0, before[name] != 0), name


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


@BOTH
@pytest.mark.parametrize("safe", [False, True])
def test_merging_gives_a_plain_model_with_the_same_outputs_bit_for_bit(
    settings: dict[str, Any], safe: bool, tmp_path: Path
) -> None:
    model = get_peft_model(llama(), config_of(settings))
    disturb(model)
    expected = logits(model)
    zeros = {n: int((~layer.sparse_weight("default").alive()).sum()) for n, layer in layers(model).items()}
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


def test_sizes_are_exposed_as_by_other_tuners() -> None:
    names = ["conv1", "emb", "hidden"]
    model = get_peft_model(ConvNet(), BiDSTConfig(target="delta", sparsity=0.5, target_modules=names))
    sizes = {name.rpartition(".")[2]: (m.in_features, m.out_features) for name, m in layers(model).items()}
    assert sizes == {"conv1": (3, 8), "emb": (10, 72), "hidden": (72, 20)}
    linear = layers(get_peft_model(gpt2(), config_of(DELTA, target_modules=["c_fc"])))
    assert {(m.in_features, m.out_features) for m in linear.values()} == {(32, 128)}


def test_a_delta_on_top_of_a_sparse_weight() -> None:
    model = get_peft_model(llama(), config_of(WEIGHT, train_others=False))
    expected = logits(model)
    model.add_adapter("delta", config_of(DELTA))
    model.base_model.set_adapter(["delta", "default"])
    assert torch.equal(logits(model), expected)
    disturb(model, "delta")
    expected = logits(model)
    assert torch.equal(logits(model.merge_and_unload()), expected)


def test_hostile_places_are_refused_before_they_are_used(tmp_path: Path) -> None:
    model = get_peft_model(llama(), config_of(WEIGHT))
    state = get_peft_model_state_dict(model)
    name = next(key for key in state if key.endswith("indices"))
    state[name] = state[name].clone()
    state[name][0] = 2**31 - 1
    model.peft_config["default"].checksum = None  # whoever forges a file forges its checksum too
    with pytest.raises(ValueError, match="places of the living weights are damaged"):
        set_peft_model_state_dict(model, state)
    layer = next(iter(layers(model).values()))
    layer.sparse_weight("default").indices[0] = 2**31 - 1  # transformers' own loader asks nobody
    layer.kernel["default"].kernel = "compact"
    with pytest.raises(ValueError, match="places of the living weights are damaged"):
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
    disturb(model)
    expected = logits(model)
    assert torch.equal(logits(model.merge_and_unload()), expected)


def test_bf16_base_keeps_fp32_values_and_integer_places() -> None:
    model = get_peft_model(llama().to(torch.bfloat16), config_of(DELTA))
    weight = next(iter(layers(model).values())).sparse_weight("default")
    assert (weight.values.dtype, weight.indices.dtype) == (torch.float32, torch.int32)
    disturb(model)
    expected = logits(model)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(logits(model.merge_and_unload()), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 .*\[0, 1\)"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": "0.9"}, "sparsity='0.9'"),
        ({"target": "base"}, "target='base' .*'weight', 'delta'"),
        ({"topology": "random"}, "topology='random'.*'rigl'"),
        ({"distribution": "even"}, "distribution='even'"),
        ({"update_interval": 0}, "update_interval=0 .*>= 1"),
        ({"drop_fraction": 1.5}, "drop_fraction=1.5"),
        ({"stop_fraction": -1}, "stop_fraction=-1"),
        ({"init": "zeros"}, "init='zeros'"),
        ({"init_steps": 0}, "init_steps=0"),
        ({"candidates": 0}, "candidates=0"),
        ({"score_lr": -1}, "score_lr=-1"),
        ({"score_interval": 2.5}, "score_interval=2.5"),
        ({"kernel": "cuda"}, "kernel='cuda'"),
        ({"distribution": "nonzero", "target": "delta"}, "distribution='nonzero'"),
        ({"layers_pattern": "layers"}, "layers_to_transform"),
    ],
)
def test_wrong_fields_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiDSTConfig(**settings)


def test_a_layer_without_a_living_weight_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"sparsity=0.9999 .*q_proj.*exclude_modules"):
        get_peft_model(llama(), config_of(DELTA, sparsity=0.9999, distribution="uniform"))


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (["nothing_like_it"], ValueError, "nothing_like_it"),
        (r".*\.mlp\.act_fn", TypeError, "mlp.act_fn.*SiLU.*expected Linear"),
        (["input_layernorm"], TypeError, "input_layernorm.*LlamaRMSNorm"),
    ],
)
def test_targets_that_cannot_be_are_refused_by_name(targets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get_peft_model(llama(), config_of(DELTA, target_modules=targets))


def test_attention_that_reads_weights_behind_the_layers_back_is_refused() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    with pytest.raises(TypeError, match=r"0.out_proj.*exclude_modules=\['out_proj'\]"):
        get_peft_model(model, BiDSTConfig(target="delta", sparsity=0.5, target_modules=["0.out_proj"]))


def test_quantised_layers_are_refused() -> None:
    class Linear4bit(nn.Linear):
        pass

    model = nn.Sequential(Linear4bit(8, 8))
    model[0].weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="'0', whose weight is quantised"):
        get_peft_model(model, BiDSTConfig(target="delta", sparsity=0.5, target_modules=["0"]))


def test_names_that_peft_would_confuse_are_refused() -> None:
    model = nn.ModuleDict({"a_norm_x": nn.Linear(8, 8), "x": nn.LayerNorm(8)})
    with pytest.raises(ValueError, match=r"'x'.*'a_norm_x'.*train_others=False"):
        get_peft_model(model, BiDSTConfig(sparsity=0.5, target_modules=["a_norm_x"]))


def test_mixed_adapters_are_refused_by_peft() -> None:
    with pytest.raises(ValueError, match="PeftMixedModel"):
        get_peft_model(llama(), config_of(DELTA), mixed=True)


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


def test_the_model_class_is_the_public_one() -> None:
    assert isinstance(get_peft_model(llama(), config_of(DELTA)).base_model, BiDSTModel)


def test_a_config_can_be_used_for_another_model() -> None:
    config = BiDSTConfig(target="delta", sparsity=0.9, target_modules=["q_proj", "query"], distribution="uniform")
    get_peft_model_state_dict(get_peft_model(llama(), config))
    assert len(layers(get_peft_model(bert(), config))) == 2
