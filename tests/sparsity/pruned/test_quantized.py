"""QLoRA on a pruned model, 4 and 8 bits of bitsandbytes, on the CPU."""

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_efficient import keep_sparsity
from hf_efficient.compat.peft import dequantized_weight
from tests.sparsity.pruned.models import pruned

KINDS: dict[str, Any] = {
    "nf4": lambda i, o: bnb.nn.Linear4bit(i, o, quant_type="nf4", compute_dtype=torch.float32),
    "nf4 double": lambda i, o: bnb.nn.Linear4bit(i, o, quant_type="nf4", compress_statistics=True),
    "fp4": lambda i, o: bnb.nn.Linear4bit(i, o, quant_type="fp4", compute_dtype=torch.float32),
    "int8": lambda i, o: bnb.nn.Linear8bitLt(i, o, has_fp16_weights=False),
}


def quantized(kind: str) -> tuple[Any, Tensor]:
    """An adapted model of one pruned, quantized layer, and where the pruned weight was zero."""
    torch.manual_seed(0)
    plain = pruned(nn.Linear(64, 96))
    layer = KINDS[kind](64, 96)
    layer.load_state_dict(plain.state_dict())
    model: Any = nn.Sequential(layer.to("cpu"))
    setattr(model, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", True)  # as transformers sets it
    config = LoraConfig(target_modules=["0"], r=4, lora_alpha=4, init_lora_weights=False)
    return get_peft_model(model, config), plain.weight == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_delta_is_masked_by_what_the_codes_stand_for(kind: str) -> None:
    model, zeros = quantized(kind)
    layer = model.base_model.model[0]
    assert type(layer).__name__ == ("Linear8bitLt" if kind == "int8" else "Linear4bit")
    kept = keep_sparsity(model)
    assert kept.layers
    x = torch.randn(5, 64, requires_grad=True)
    weight = dequantized_weight(layer.base_layer).float()
    assert bool((weight[zeros] == 0).all())
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        alone = layer.base_layer(x)
    y = model(x)
    truth = alone + x @ ((b @ a) * (weight != 0)).T
    assert torch.allclose(y, truth, atol=1e-4)
    for ours, theirs in zip(
        torch.autograd.grad(y.square().sum(), (a, b)), torch.autograd.grad(truth.square().sum(), (a, b)), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Merge lora module:UserWarning")
def test_merging_into_the_quantized_weight_keeps_zeros(kind: str) -> None:
    model, zeros = quantized(kind)
    keep_sparsity(model)
    x = torch.randn(5, 64)
    with torch.no_grad():
        expected, base = model(x), model.base_model.model[0].base_layer(x)
        merged = model.merge_and_unload()
        found = merged(x)
    weight = dequantized_weight(merged[0])
    assert bool((weight[zeros] == 0).all())
    assert 0.4 < float((weight == 0).float().mean()) < 0.65
    assert float((found - expected).norm()) < 0.4 * float((expected - base).norm())  # rounding to codes again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Merge lora module:UserWarning")
def test_evaluation_which_packs_weights_on_some_cpus_changes_nothing(kind: str) -> None:
    model, zeros = quantized(kind)
    with torch.no_grad():
        weight = dequantized_weight(model.base_model.model[0].base_layer).float()
    keep_sparsity(model)
    layer, x = model.base_model.model[0], torch.randn(5, 64)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    model.eval()
    with torch.no_grad():
        for _ in range(2):
            found = model(x) - layer.base_layer(x)
        assert torch.allclose(found, x @ ((b @ a) * (weight != 0)).T, atol=0.05)
        assert bool((dequantized_weight(layer.base_layer)[zeros] == 0).all())
        merged = dequantized_weight(model.merge_and_unload()[0]).float()
    assert bool((merged[zeros] == 0).all())
    delta = (b @ a).detach() * (weight != 0)
    assert float((merged - weight - delta).norm()) < 0.3 * float(delta.norm())


def test_without_a_mask_merging_fills_zeros() -> None:
    model, zeros = quantized("nf4")
    with pytest.warns(UserWarning, match="rounding"):
        merged = model.merge_and_unload()
    assert not bool((dequantized_weight(merged[0])[zeros] == 0).all())


def test_a_whole_qlora_step_keeps_zeros() -> None:
    model, zeros = quantized("nf4")
    kept = keep_sparsity(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.ones(4, 64)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    kept.check()
    kept.remove()
    assert bool((dequantized_weight(model.base_model.model[0].base_layer)[zeros] == 0).all())
