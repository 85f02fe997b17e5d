"""Zeros stay zero in training, and training is that of the masked model."""

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from lion_pytorch import Lion
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import Adafactor, Trainer, TrainingArguments

from hf_efficient import S2SAM, ZOSAM, keep_sparsity
from hf_efficient.active_mask import set_active_mask
from tests.sparsity.models import IDS, ConvNet, convnet_inputs, few_steps, gpt2, llama
from tests.sparsity.pruned.models import pruned, zeros_of

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adafactor": lambda p: Adafactor(p, lr=1e-2, relative_step=False),
    "lion": lambda p: Lion(p, lr=1e-3),
    "8 bits": lambda p: bnb.optim.AdamW8bit(p, lr=1e-2, min_8bit_size=1),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return pruned(nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 8)))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor] | None = None, steps: int = 5
) -> None:
    """Plain steps; with masks (True where zero), gradients are masked by hand, as the pruners' authors advise."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for _ in range(2):  # accumulation
            model(torch.randn(16, 24, generator=generator)).square().mean().backward()
        for name, parameter in model.named_parameters():
            if masks and name in masks:
                assert parameter.grad is not None
                parameter.grad[masks[name]] = 0
        optimizer.step()
        optimizer.zero_grad()
        for name, mask in (masks or {}).items():
            model.get_parameter(name).data[mask] = 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_of_a_model_masked_by_hand_bit_for_bit(name: str) -> None:
    model, by_hand = net(), net()
    before, masks = copy.deepcopy(model.state_dict()), zeros_of(by_hand)
    kept = keep_sparsity(model)
    train(model, OPTIMIZERS[name](model.parameters()))
    train(by_hand, OPTIMIZERS[name](by_hand.parameters()), masks)
    kept.check()
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, by_hand.get_parameter(key)), key
        assert not torch.equal(parameter, before[key])
        if key in masks:
            assert bool((parameter[masks[key]] == 0).all())
    assert kept.sparsity == pytest.approx(0.5, abs=0.05)


def test_without_it_zeros_are_lost_and_remove_goes_back_to_that() -> None:
    model = net()
    keep_sparsity(model).remove()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    assert zeros_of(model) == {}


@pytest.mark.parametrize("optimizer", ["muon", "momentum"])
def test_an_optimizer_that_moves_zeros_is_told_after_its_first_step(optimizer: str) -> None:
    model = net()
    if optimizer == "muon":
        made: torch.optim.Optimizer = torch.optim.Muon([model[0].weight, model[2].weight], lr=0.01)
    else:
        made = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        train(model, made, steps=1)
        pruned(model)
    keep_sparsity(model)
    with pytest.raises(RuntimeError, match=r"zeros of '0\.weight' are lost.*Muon"):
        train(model, made, steps=1)


def test_an_optimizer_of_another_model_checks_nothing() -> None:
    model, other = net(), net()
    keep_sparsity(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    train(other, torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="are lost"):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_weight_that_another_tensor_replaces_is_told() -> None:
    model = net()
    kept = keep_sparsity(model)
    model.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(RuntimeError, match=r"Another tensor has taken the place of '0\.weight'"):
        kept.check()


def test_what_is_frozen_keeps_its_zeros_when_it_trains_later() -> None:
    model = net().requires_grad_(False)
    keep_sparsity(model)
    assert not any(p.requires_grad for p in model.parameters())
    model.requires_grad_(True)
    masks = zeros_of(model)
    train(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    assert all(bool((model.get_parameter(name)[mask] == 0).all()) for name, mask in masks.items())


def test_gradients_that_overflow_at_zeros_are_zero() -> None:
    model = net()
    keep_sparsity(model)
    (model[0].weight.sum() * torch.inf).backward()
    assert bool((model[0].weight.grad[model[0].weight == 0] == 0).all())


@pytest.mark.parametrize("make", [S2SAM, ZOSAM])
def test_perturbed_training_keeps_zeros(make: Any) -> None:
    model = net()
    kept, masks = keep_sparsity(model), zeros_of(model)
    if make is ZOSAM:  # moves zeros while it probes, unless told
        for name, mask in masks.items():
            set_active_mask(model.get_parameter(name), ~mask)
    optimizer = make(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1)
    for _ in range(3):
        optimizer.perturb(lambda: model(torch.ones(4, 24)).square().mean())
        model(torch.ones(4, 24)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    kept.check()


def test_convolutions_are_kept_and_embeddings_and_norms_are_not() -> None:
    model = pruned(ConvNet())
    with torch.no_grad():
        model.emb.weight[1:5] = 0
    kept = keep_sparsity(model)
    assert sorted(kept.weights) == ["conv1.weight", "conv2.weight", "fc.weight", "hidden.weight"]
    named = keep_sparsity(model, target_modules=["emb", "fc"])
    assert sorted(named.weights) == ["emb.weight", "fc.weight"]
    masks = zeros_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(*convnet_inputs()).square().mean().backward()
    optimizer.step()
    assert bool((model.emb.weight[masks["emb.weight"]] == 0).all())
    assert not bool((model.conv1.weight[masks["conv1.weight"]] == 0).all())  # the second call took its place


def test_names_are_ends_or_a_regular_expression_and_may_leave_out() -> None:
    model = pruned(llama())
    assert all("q_proj" in name for name in keep_sparsity(model, target_modules=["q_proj"]).weights)
    assert len(keep_sparsity(model, target_modules=r"model\.layers\.0\.mlp\..*").weights) == 3
    left = keep_sparsity(model, exclude_modules=["lm_head", "mlp.up_proj"]).weights
    assert len(left) == 12
    with pytest.raises(ValueError, match=r"named 'query', 'value'\."):
        keep_sparsity(model, target_modules=["query", "q_proj"], exclude_modules=["value"])


def test_attention_of_torch_gpt2_and_fused_experts_are_kept() -> None:
    assert len(keep_sparsity(pruned(gpt2())).weights) == 8  # Conv1D; the tied head is whole

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(3, 4, 6) * (torch.rand(3, 4, 6) < 0.5))
            self.attention = nn.MultiheadAttention(4, 2)
            self.start = nn.Parameter(torch.zeros(1, 1, 4))

    model = Experts()
    with torch.no_grad():
        model.attention.in_proj_weight[:4] = 0
    assert sorted(keep_sparsity(model).weights) == ["attention.in_proj_weight", "gate_up_proj"]


def test_a_tied_head_belongs_to_the_embedding() -> None:
    model = pruned(llama(tied=True))
    with torch.no_grad():
        model.lm_head.weight[:30] = 0
    assert not any("lm_head" in name or "embed" in name for name in keep_sparsity(model).weights)
    assert list(keep_sparsity(model, target_modules=["embed_tokens"]).weights) == ["model.embed_tokens.weight"]


def test_what_is_not_pruned_is_refused_with_its_share() -> None:
    with pytest.raises(ValueError, match=r"0 of the \d+ weights .*\(0\.00%\), expected at least 1%"):
        keep_sparsity(llama())
    with pytest.raises(ValueError, match="0 of the 0 weights"):
        keep_sparsity(nn.LayerNorm(4))
    model = nn.Sequential(nn.Linear(4, 4))
    prune.random_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"prune\.remove"):
        keep_sparsity(model)
    prune.remove(model[0], "weight")
    assert keep_sparsity(model).sparsity == 0.5


def test_a_layer_of_zeros_alone_is_told() -> None:
    model = net()
    nn.init.zeros_(model[2].weight)
    with pytest.warns(UserWarning, match=r"All entries of '2\.weight'.*exclude_modules"):
        keep_sparsity(model)


def test_nothing_keeps_a_model_in_memory() -> None:
    model = net()
    keep_sparsity(model)
    left = weakref.ref(model)
    del model
    gc.collect()
    assert left() is None


def test_gradients_that_ddp_averages_keep_zeros(tmp_path: Path) -> None:
    model = net()
    kept = keep_sparsity(model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        train(parallel, torch.optim.AdamW(model.parameters(), lr=1e-2))
    finally:
        torch.distributed.destroy_process_group()
    kept.check()


def test_checkpointed_layers_and_autocast_keep_zeros() -> None:
    model = pruned(llama()).train()
    masks = zeros_of(model)
    kept = keep_sparsity(model)
    model.gradient_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16):
        few_steps(model)
    kept.check()
    assert len(masks) == 15
    for name, mask in masks.items():
        assert bool((model.get_parameter(name)[mask] == 0).all()), name


def test_the_trainer_keeps_zeros_and_so_does_what_it_saves(tmp_path: Path) -> None:
    model = pruned(llama())
    masks = zeros_of(model)
    keep_sparsity(model)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=2, report_to=[],
        save_strategy="no", use_cpu=True, learning_rate=1e-2, weight_decay=0.1,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in IDS]
    Trainer(model, arguments, train_dataset=data).train()
    model.save_pretrained(tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out")
    assert not torch.equal(again.lm_head.weight, pruned(llama()).lm_head.weight)
    for name, mask in masks.items():
        assert bool((again.get_parameter(name)[mask] == 0).all()), name
