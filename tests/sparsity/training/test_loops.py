"""Sparse training inside torch loops: resuming, accumulation, autocast, scalers, other optimizers."""

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from hf_efficient import S2SAM, ZOSAM, BiDSTConfig, train_sparsely
from tests.sparsity.loops import batches, classifier, run, state_of, trainable, weights_of
from tests.sparsity.models import ConvNet, convnet_inputs

TOPOLOGIES = pytest.mark.parametrize("topology", ["bidst", "rigl", "set", "mest"])


@pytest.mark.parametrize("amount", [{}, {"pattern": "2:4", "sparsity": 0.5}], ids=["any", "2:4"])
@TOPOLOGIES
def test_a_torch_loop_resumes_bit_for_bit(topology: str, amount: dict[str, Any]) -> None:
    """20 steps at once, or 10, everything through files, and 10 more."""
    data = batches(20)

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = classifier(topology=topology, **amount)
        return model, torch.optim.AdamW(trainable(model), lr=0.01)

    model, optimizer = start()
    train_sparsely(model, optimizer, total_steps=20)
    run(model, optimizer, data)
    expected = state_of(model)

    first, optimizer = start()
    train_sparsely(first, optimizer, total_steps=20)
    run(first, optimizer, data[:10])
    file = io.BytesIO()
    torch.save({"model": get_peft_model_state_dict(first), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for hook_first in (False, True):
        second, optimizer = start()
        set_peft_model_state_dict(second, copy.deepcopy(saved["model"]))
        if hook_first:
            train_sparsely(second, optimizer, total_steps=20)
        optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        if not hook_first:
            train_sparsely(second, optimizer, total_steps=20)
        run(second, optimizer, data[10:])
        result = state_of(second)
        assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "settings", [{}, {"target": "delta"}, {"pattern": "2:4", "sparsity": 0.5}, {"topology": "gmp"}]
)
def test_a_training_killed_at_any_of_ten_steps_goes_on_bit_for_bit(settings: dict[str, Any]) -> None:
    """Before, at and after exchanges and reads of gradients, and when the mask has come to rest."""
    data = batches(20)

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = classifier(**{"topology": "bidst", **settings})
        return model, torch.optim.AdamW(trainable(model), lr=0.01)

    model, optimizer = start()
    training = train_sparsely(model, optimizer, total_steps=20)
    saved = []
    for batch in data:
        saved.append(copy.deepcopy({"model": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict()}))
        run(model, optimizer, [batch])
    assert training.report()["mask_updates"] >= 3
    expected = state_of(model)
    for killed in (1, 3, 4, 5, 7, 8, 9, 12, 15, 19):
        model, optimizer = start()
        set_peft_model_state_dict(model, saved[killed]["model"])
        optimizer.load_state_dict(saved[killed]["optimizer"])
        train_sparsely(model, optimizer, total_steps=20)
        run(model, optimizer, data[killed:])
        result = state_of(model)
        assert [name for name, tensor in expected.items() if not torch.equal(result[name], tensor)] == [], killed


def test_accumulated_micro_batches_are_one_batch() -> None:
    """In float64, where the order of sums does not decide which weights are active."""
    data = batches(12)
    whole, parts = classifier(topology="bidst").double(), classifier(topology="bidst").double()
    for model, pieces in ((whole, 1), (parts, 4)):
        optimizer = torch.optim.SGD(trainable(model), lr=0.1, momentum=0.9)
        train_sparsely(model, optimizer, total_steps=12)
        for x, y in data:
            for a, b in zip(x.double().chunk(pieces), y.chunk(pieces)):
                (F.cross_entropy(model(a), b) / pieces).backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(weights_of(whole), weights_of(parts)):
        assert torch.equal(a.indices, b.indices)
        assert torch.allclose(a.values, b.values)


@TOPOLOGIES
def test_bf16_autocast_trains(topology: str) -> None:
    model = classifier(topology=topology)
    optimizer = torch.optim.AdamW(trainable(model), lr=0.01)
    training = train_sparsely(model, optimizer, total_steps=30)
    losses = []
    for x, y in batches(30):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert training.report()["mask_updates"] >= 1


def test_a_gradient_scaler_that_skips_a_step_skips_the_topology_too() -> None:
    model = classifier(topology="rigl", update_interval=1)
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    training = train_sparsely(model, optimizer, total_steps=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    (x, y), *_ = batches(1)
    before = [w.long_indices.tolist() for w in weights_of(model)]
    scaler.scale(F.cross_entropy(model(x * torch.inf), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert training.steps == 0
    assert [w.long_indices.tolist() for w in weights_of(model)] == before
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    assert training.steps == 1
    assert [w.long_indices.tolist() for w in weights_of(model)] != before


@pytest.mark.parametrize("outer", [S2SAM, ZOSAM])
def test_sharpness_aware_optimizers_perturb_active_weights_only(outer: Any) -> None:
    model = classifier(topology="bidst")
    optimizer = outer(trainable(model), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
    training = train_sparsely(model, optimizer, total_steps=40)
    perturbed = 0
    for x, y in batches(40):
        before = [w.values.detach().clone() for w in weights_of(model)]
        with optimizer.perturb(lambda x=x, y=y: F.cross_entropy(model(x), y)):
            for weight, values in zip(weights_of(model), before):
                dense = weight.dense().flatten()
                assert int(dense[~weight.mask()].count_nonzero()) == 0
                perturbed += int(not torch.equal(weight.values, values))
            F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert perturbed > 60
    assert training.report()["mask_updates"] >= 3


def test_convolutions_move_too() -> None:
    config = BiDSTConfig(sparsity=0.7, topology="rigl", target_modules=["conv1", "conv2"], update_interval=2)
    model = get_peft_model(ConvNet(), config)
    optimizer = torch.optim.SGD(trainable(model), lr=0.05)
    training = train_sparsely(model, optimizer, total_steps=30)
    inputs = convnet_inputs()
    for _ in range(30):
        F.cross_entropy(model(*inputs), torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert training.report()["mask_updates"] >= 3
