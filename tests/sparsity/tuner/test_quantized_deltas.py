"""Sparse deltas on bases in 4 and 8 bits of bitsandbytes, on the CPU, against dense matrices."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from hf_efficient import BiDSTConfig, train_sparsely
from hf_efficient.compat.peft import dequantized_weight
from hf_efficient.sparsity.tuner.layer import BiDSTLayer
from tests.sparsity.models import disturb
from tests.sparsity.pruned.test_quantized import KINDS

EVERY = pytest.mark.parametrize("kind", KINDS)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.LayerNorm(64))


def quantized(kind: str) -> nn.Module:
    net = plain()
    for name in ("0", "2"):
        layer = net.get_submodule(name)
        codes = KINDS[kind](layer.in_features, layer.out_features)
        codes.load_state_dict(layer.state_dict())
        net.set_submodule(name, codes.to("cpu"))
    return net


def adapted(net: nn.Module, **settings: Any) -> PeftModel:
    config = {"target": "delta", "sparsity": 0.9, "target_modules": ["0", "2"], **settings}
    if "topology" not in settings:
        config["update_interval"] = 3
    return get_peft_model(net, BiDSTConfig(**config))


def inputs(tokens: int = 5) -> Tensor:
    return torch.randn(tokens, 64, generator=torch.Generator().manual_seed(1))


@EVERY
@pytest.mark.parametrize(("backend", "tokens"), [("dense", 5), ("dense", 30), ("csr", 5)])
def test_outputs_and_gradients_are_those_of_base_and_delta(kind: str, backend: str, tokens: int) -> None:
    model = adapted(quantized(kind), init="random", backend=backend).train()
    disturb(model)
    layer: BiDSTLayer = model.base_model.model[0]
    weight = layer.sparse_weight("default")
    x = inputs(tokens).view(-1, 5, 64).requires_grad_(True)
    delta = weight.dense().detach().requires_grad_(True)
    truth = layer.base_layer(x) + F.linear(x, delta)
    weight.collecting = True
    found = layer(x)
    torch.testing.assert_close(found, truth)
    seed = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    to_x, to_values = torch.autograd.grad((found * seed).sum(), (x, weight.values))
    expected_x, to_delta = torch.autograd.grad((truth * seed).sum(), (x, delta))
    torch.testing.assert_close(to_x, expected_x)
    torch.testing.assert_close(to_values, to_delta.flatten()[weight.long_indices])
    assert weight.gradient is not None
    torch.testing.assert_close(weight.gradient, to_delta.flatten())


@EVERY
@pytest.mark.parametrize("init", ["snip", "gradient", "random", "magnitude"])
def test_it_trains_and_files_bring_it_back(kind: str, init: str, tmp_path: Path) -> None:
    model = adapted(quantized(kind), init=init).train()
    codes = {n: p.clone() for n, p in model.named_parameters() if "base_layer.weight" in n}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    training = train_sparsely(model, optimizer, 12)
    losses = []
    for _ in range(12):
        loss = model(inputs()).square().sub(1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert training.report()["mask_updates"]
    entries = 2 * 64 * 128
    active = sum(len(w.indices) for w in training.weights.values())
    others = sum(p.numel() for p in plain().parameters()) - entries
    assert training.report()["sparsity"] == pytest.approx(1 - active / entries)
    assert training.report()["model_sparsity"] == pytest.approx(1 - active / (entries + others))
    assert all(torch.equal(p, codes[n]) for n, p in model.named_parameters() if n in codes)
    with torch.no_grad():
        expected = model.eval()(inputs())
        with model.disable_adapter():
            torch.testing.assert_close(model(inputs()), quantized(kind).eval()(inputs()))
        model.save_pretrained(str(tmp_path))
        again = PeftModel.from_pretrained(quantized(kind), str(tmp_path)).eval()
        assert torch.equal(again(inputs()), expected)


@EVERY
def test_the_first_mask_by_snip_is_that_of_the_numbers(kind: str) -> None:
    """The largest |w dL/dw|, w being what the codes stand for."""
    model = adapted(quantized(kind), init="snip", topology="static").train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    train_sparsely(model, optimizer, 12)
    layers: list[Any] = [model.base_model.model[0], model.base_model.model[2]]
    norm = model.base_model.model[3]
    first, second = (dequantized_weight(layer.base_layer).float().requires_grad_(True) for layer in layers)
    hidden = F.relu(F.linear(inputs(), first, layers[0].base_layer.bias))
    norm(F.linear(hidden, second, layers[1].base_layer.bias)).square().sub(1).square().mean().backward()
    model(inputs()).square().sub(1).square().mean().backward()
    optimizer.step()
    for layer, weight in zip(layers, (first, second), strict=True):
        assert weight.grad is not None
        scores = (weight.detach() * weight.grad).abs().flatten()
        chosen = layer.sparse_weight("default").long_indices
        best = scores.topk(len(chosen)).indices
        same = len(set(chosen.tolist()) & set(best.tolist()))
        assert same >= 0.95 * len(best), same / len(best)  # int8 multiplies rounded inputs


@EVERY
def test_merging_is_refused_before_any_layer_is_and_works_without_quantization(kind: str, tmp_path: Path) -> None:
    model = adapted(nn.Sequential(plain(), quantized(kind)), target_modules=["0.0", "1.2"], init="random")
    disturb(model)
    plain_layer = model.base_model.model[0][0]
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"cannot be merged into a Linear\w+: .*without quantization"):
            merge()
        assert not plain_layer.merged
    assert isinstance(model.unload()[1][2], type(quantized(kind)[2]))
    model = adapted(quantized(kind), init="random")
    disturb(model)
    model.save_pretrained(str(tmp_path))
    truth = plain()
    with torch.no_grad():
        for name in ("0", "2"):
            truth.get_submodule(name).weight += model.base_model.model.get_submodule(name).get_delta_weight("default")
        merged = PeftModel.from_pretrained(plain(), str(tmp_path)).merge_and_unload()
        torch.testing.assert_close(merged(inputs()), truth(inputs()))


def test_what_backward_keeps_is_not_a_matrix_per_layer() -> None:
    model = adapted(quantized("nf4"), init="random").train()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        model.base_model.model[0](inputs().requires_grad_(True))
    assert max(kept) < 64 * 128 / 2 + 1, kept  # the codes, two in a byte


class Codes(nn.Module):
    """A linear layer of a kind that nothing here can read, as GPTQ's."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 64, 96
        self.register_buffer("qweight", torch.arange(64 * 96).view(64, 96).remainder(7).sub(3).to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        codes: Any = self.qweight
        return x @ codes.to(x.dtype) / 8


def test_codes_that_cannot_be_read_need_an_initial_mask_without_weights() -> None:
    model = adapted(nn.Sequential(Codes()), target_modules=["0"], init="gradient").train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    training = train_sparsely(model, optimizer, 9)
    before = model(inputs()).square().mean()
    for _ in range(9):
        model(inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(model(inputs()).square().mean()) < float(before)
    assert training.report()["model_sparsity"] == pytest.approx(0.9, abs=0.01)
    model = adapted(nn.Sequential(Codes()), target_modules=["0"], init="snip").train()
    with pytest.raises(ValueError, match=r"codes of a Codes cannot be read.*init='gradient' or 'random'"):
        train_sparsely(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2), 9)
