"""LoRA on a pruned model: the merge keeps zeros, and changes no output."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hf_efficient import BiDSTConfig, keep_sparsity
from tests.sparsity.models import IDS, ConvNet, convnet_inputs, disturb, few_steps, gpt2, llama, logits
from tests.sparsity.pruned.models import pruned, zeros_of

LORA: dict[str, Any] = {"target_modules": "all-linear", "lora_alpha": 4, "init_lora_weights": False}


def adapted(model: nn.Module | None = None, **settings: Any) -> Any:
    torch.manual_seed(7)
    return get_peft_model(pruned(llama()) if model is None else model, LoraConfig(**{**LORA, **settings}))  # type: ignore[arg-type]


def merged_by_hand(model: Any, adapter: str = "default", scale: float = 0.5) -> dict[str, Tensor]:
    """Weight of each LoRA layer, W + M * (s B A): written from the definition."""
    merged = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and adapter in layer.lora_A:
            weight = layer.base_layer.weight.detach()
            delta = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight * scale
            delta = delta.T if type(layer.base_layer).__name__ == "Conv1D" else delta
            merged[name.removeprefix("base_model.model.")] = torch.where(weight == 0, 0.0, weight + delta.detach())
    return merged


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(("settings", "scale"), [({}, 0.5), ({"use_rslora": True, "r": 4}, 2.0)])
def test_merging_keeps_zeros_and_changes_no_output(
    make: Any, settings: dict[str, Any], scale: float, safe: bool
) -> None:
    model = adapted(pruned(make()), **settings)
    plain = logits(model)
    kept = keep_sparsity(model)
    assert len(kept.layers) == len(merged_by_hand(model)) > 7
    expected, weights = logits(model), merged_by_hand(model, scale=scale)
    assert not torch.allclose(plain, expected, atol=1e-3)  # a plain delta is another function
    model = model.merge_and_unload(safe_merge=safe)
    assert torch.allclose(logits(model), expected, atol=1e-5)
    for name, weight in weights.items():
        found = model.get_submodule(name).weight
        assert torch.allclose(found, weight, atol=1e-6)
        assert torch.equal(found == 0, weight == 0)
    kept.check()
    assert 0.4 < kept.sparsity < 0.6


def test_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    model = adapted(pruned(nn.Sequential(nn.Linear(6, 5))), target_modules=["0"], r=2).double()
    keep_sparsity(model)
    layer = model.base_model.model[0]
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    base = layer.base_layer

    def formula(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x @ (base.weight + (base.weight != 0) * (2.0 * b @ a)).T + base.bias

    for ours, truth in zip(
        torch.autograd.grad(layer(x).square().sum(), (x, a, b)),
        torch.autograd.grad(formula(x, a, b).square().sum(), (x, a, b)),
        strict=True,
    ):
        assert torch.allclose(ours, truth, atol=1e-10)


def test_training_with_dropout_checkpointing_and_autocast_then_saving_and_loading(tmp_path: Path) -> None:
    model = adapted(lora_dropout=0.1, init_lora_weights=True, modules_to_save=["lm_head"])
    keep_sparsity(model)
    model.train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    with torch.autocast("cpu", torch.bfloat16):
        few_steps(model)
    expected = logits(model)
    assert not torch.allclose(expected, logits(pruned(llama())), atol=1e-3)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["keeps_zeros"] is True
    with pytest.warns(UserWarning, match="keeps_zeros"):  # for those who load it and forget
        again = PeftModel.from_pretrained(pruned(llama()), tmp_path)
    keep_sparsity(again)
    assert torch.equal(logits(again), expected)
    plain = again.merge_and_unload()
    assert torch.allclose(logits(plain), expected, atol=1e-5)
    zeros = zeros_of(pruned(llama()))
    for name, parameter in plain.named_parameters():  # the copy of the head that was trained, too
        assert torch.equal(parameter == 0, zeros.get(name, parameter == 0)), name
    plain.save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")), logits(plain))


def test_later_adapters_are_masked_too_and_all_may_be_active() -> None:
    model = adapted(target_modules=["q_proj", "up_proj"])
    keep_sparsity(model)
    first = logits(model)
    model.add_adapter("second", LoraConfig(**{**LORA, "target_modules": ["q_proj", "up_proj"], "r": 4}))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    second = logits(model)
    weights = merged_by_hand(model, "second", scale=1.0)
    by_hand = pruned(llama())
    for name, weight in weights.items():
        by_hand.get_submodule(name).weight = nn.Parameter(weight)
    assert torch.allclose(logits(by_hand), second, atol=1e-5)
    with torch.no_grad():
        rows = model(input_ids=IDS, adapter_names=["default", "second"]).logits
    assert torch.allclose(rows, torch.stack([first[0], second[1]]), atol=1e-5)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    model.base_model.merge_adapter()
    assert torch.allclose(logits(model), both, atol=1e-5)
    with model.disable_adapter():  # unmerges
        assert torch.allclose(logits(model), logits(pruned(llama())), atol=1e-5)
    assert torch.allclose(logits(model), both, atol=1e-5)


def test_unmerging_brings_back_a_weight_that_was_merged_to_zero() -> None:
    model = adapted(nn.Sequential(pruned(nn.Linear(4, 3))), target_modules=["0"], r=4, lora_alpha=4)
    layer = model.base_model.model[0]
    before = layer.base_layer.weight.detach().clone()
    keep_sparsity(model)
    with torch.no_grad():  # B A = -W: all is merged to zero
        layer.lora_A["default"].weight.copy_(torch.eye(4))
        layer.lora_B["default"].weight.copy_(-before)
    model.base_model.merge_adapter()
    assert int(layer.base_layer.weight.count_nonzero()) == 0
    model.base_model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, before)


def test_remove_and_copies() -> None:
    model = adapted()
    plain = logits(model)
    kept = keep_sparsity(model)
    masked = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), masked)
    model.base_model.merge_adapter()
    with pytest.raises(ValueError, match="is merged"):
        kept.remove()
    model.base_model.unmerge_adapter()
    kept.remove()
    assert torch.allclose(logits(model), plain, atol=1e-5)


def test_lora_of_a_convolution() -> None:
    model: Any = pruned(ConvNet())
    model = get_peft_model(model, LoraConfig(target_modules=["conv1"], init_lora_weights=False, r=4))
    keep_sparsity(model, exclude_modules=["conv2"]).check()
    x, ids = convnet_inputs()
    expected = model.eval()(x, ids)
    zeros = model.base_model.model.conv1.base_layer.weight == 0
    merged = model.merge_and_unload()
    assert torch.allclose(merged(x, ids), expected, atol=1e-4)
    assert torch.equal(merged.conv1.weight == 0, zeros)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(target_modules=["q_proj"], use_dora=True), r"Adapter 'default' of .* is DoraLinear, which"),
        (
            LoraConfig(target_modules="all-linear", init_lora_weights="pissa"),
            "init_lora_weights='pissa', which changes",
        ),
        (LoraConfig(target_modules=["q_proj"], init_lora_weights="olora"), "init_lora_weights='olora', which changes"),
        (LoHaConfig(target_modules=["q_proj"]), r"is a tuners\.loha\.layer\.Linear, which keep_sparsity cannot mask"),
        (AdaLoraConfig(target_modules=["q_proj"], total_step=9), r"is a tuners\.adalora\.layer\.SVDLinear"),
        (BiDSTConfig(target_modules=["q_proj"], target="delta", sparsity=0.9), "BiDST adapter, which decides itself"),
    ],
    ids=["dora", "pissa", "olora", "loha", "adalora", "bidst"],
)
def test_what_cannot_be_masked_is_refused_by_name(config: Any, message: str) -> None:
    model = get_peft_model(pruned(llama()), config)
    with pytest.raises(ValueError, match=message):
        keep_sparsity(model)


def test_ia3_multiplies_and_needs_no_mask() -> None:
    model: Any = get_peft_model(
        pruned(llama()), IA3Config(target_modules=["q_proj", "up_proj"], feedforward_modules=["up_proj"])
    )
    kept = keep_sparsity(model)
    disturb(model)
    model.merge_and_unload()
    kept.check()
    assert kept.layers == {}


def test_a_variant_that_is_added_later_is_refused() -> None:
    model = adapted()
    keep_sparsity(model)
    with pytest.raises(ValueError, match="'second' is DoraLinear, a variant of LoRA that cannot be masked"):
        model.add_adapter("second", LoraConfig(**LORA, use_dora=True))


def test_an_adapter_that_is_merged_already_is_refused() -> None:
    model = adapted(target_modules=["q_proj"])
    model.base_model.merge_adapter()
    with pytest.raises(ValueError, match=r"is merged\. Call unmerge_adapter"):
        keep_sparsity(model)


def test_an_adapter_that_is_added_after_keep_sparsity_is_told_at_the_first_step() -> None:
    model = pruned(llama())
    keep_sparsity(model)
    adapter = adapted(model)
    with pytest.raises(RuntimeError, match=r"added to the layer of .* after keep_sparsity"):
        few_steps(adapter)
    keep_sparsity(adapter)
    few_steps(adapter)


def test_bidst_after_keep_sparsity_is_told_to_undo_it() -> None:
    model = pruned(llama())
    kept = keep_sparsity(model)
    adapter = get_peft_model(model, BiDSTConfig(distribution="as_pruned", topology="static"))
    with pytest.raises(RuntimeError, match=r"BiDST adapter was added .*kept\.remove\(\)"):
        few_steps(adapter)
    kept.remove()
    few_steps(adapter)


def test_layers_without_zeros_have_plain_lora() -> None:
    model = adapted(pruned(llama(), kinds=()))
    model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.data[:16] = 0
    with pytest.raises(ValueError, match="expected at least 1%"):
        keep_sparsity(adapted(llama()))
    kept = keep_sparsity(model)
    assert list(kept.layers) == ["base_model.model.model.layers.0.self_attn.q_proj"]
