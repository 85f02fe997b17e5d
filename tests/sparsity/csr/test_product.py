"""Compact training: the same numbers as dense layers, and the decision by timing."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn

from benchmarks.sparsity.planted import random_weight
from hf_efficient import BiDSTConfig, train_sparsely
from hf_efficient.sparsity.csr.compress import csr_infers_faster
from hf_efficient.sparsity.csr.product import BLOCK, CSRPath, Pattern, csr_trains_faster, scratch
from hf_efficient.sparsity.tuner.layer import BiDSTLayer
from tests.sparsity.models import llama


@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (9, 1), (40, 33)])
def test_pattern_equals_the_dense_matrix(shape: tuple[int, int]) -> None:
    weight = random_weight(shape, max(1, shape[0] * shape[1] // 5), 0)
    pattern, dense = Pattern(weight.indices, *shape), weight.dense().detach()
    values = weight.values.detach()
    assert torch.equal(pattern.matrix(values).to_dense(), dense)
    assert torch.equal(pattern.transposed(values).to_dense(), dense.t())


@pytest.mark.parametrize("tokens", [1, 17, BLOCK + 3])
def test_csr_products_and_its_gradients_equal_the_dense_ones(tokens: int) -> None:
    torch.manual_seed(0)
    weight = random_weight((24, 40), 96, 0)
    x = torch.randn(tokens, 2, 40, requires_grad=True)
    slope = torch.randn(tokens, 2, 24)
    for purpose in ("product", "gradient"):
        scratch(purpose, 24 + 40, BLOCK).fill_(torch.nan)  # what lies there must not matter
    results = []
    for product in (lambda: CSRPath("csr")(weight, x), lambda: F.linear(x, weight.dense())):
        for collecting in (False, True):
            weight.values.grad = x.grad = weight.gradient = None
            weight.collecting = collecting
            y = product()
            (y * slope).sum().backward()
            results.append((y.detach(), weight.values.grad, x.grad, weight.gradient))
    for other in results[1:]:
        for a, b in zip(results[0][:3], other[:3]):
            assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)
    assert torch.allclose(results[1][3], results[3][3], atol=1e-4, rtol=1e-4)


def test_pattern_follows_weights_that_move() -> None:
    weight, path, x = random_weight((10, 12), 20, 0), CSRPath("csr"), torch.randn(3, 12)
    path(weight, x)
    inactive = (~weight.mask()).nonzero().flatten()[:4]
    weight.swap(torch.tensor([0, 5, 7, 19]), inactive, torch.ones(4))
    assert torch.allclose(path(weight, x), F.linear(x, weight.dense()), atol=1e-6)


@pytest.mark.parametrize("target", ["weight", "delta"])
def test_csr_training_follows_dense_training(target: str) -> None:
    def train(backend: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5))
        config = BiDSTConfig(
            target=target, sparsity=0.8, target_modules=["0"], backend=backend, init="random", update_interval=4
        )
        model = get_peft_model(net, config)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        train_sparsely(model, optimizer, total_steps=20)
        generator = torch.Generator().manual_seed(1)
        for _ in range(20):
            x = torch.randn(16, 30, generator=generator)
            F.cross_entropy(model(x), x[:, :5].argmax(1)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return [tensor for name, tensor in model.state_dict().items() if "bidst" in name]

    for a, b in zip(train("dense"), train("csr")):
        assert torch.allclose(a.float(), b.float(), atol=1e-4)


def test_optimizer_state_is_proportional_to_density() -> None:
    model = get_peft_model(llama(), BiDSTConfig(sparsity=0.9, target_modules="all-linear", train_others=False))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(input_ids=torch.arange(8).view(1, 8), labels=torch.arange(8).view(1, 8)).loss.backward()
    optimizer.step()
    layers = [m for m in model.modules() if isinstance(m, BiDSTLayer)]
    moments = sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.dim())
    assert moments == 2 * sum(len(layer.sparse_weight("default").values) for layer in layers)
    assert moments == pytest.approx(0.1 * 2 * sum(layer.get_base_layer().weight.numel() for layer in layers), rel=0.01)


@pytest.mark.parametrize("faster", [True, False])
def test_auto_times_a_layer_once_and_remembers(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("hf_efficient.sparsity.csr.product.csr_trains_faster", lambda *a: asked.append(a) or faster)
    weight, path = random_weight((128, 256), 1000, 0), CSRPath("auto")
    x = torch.randn(4, 8, 256)
    assert [path.suits(weight, x) for _ in range(3)] == [faster] * 3
    assert len(asked) == 1
    assert asked == [(weight.shape, 1000, 32)]
    assert not path.suits(random_weight((128, 256), 20_000, 0), x), "too dense to be worth a timing"
    assert not path.suits(weight, x.double())
    with torch.autocast("cpu"):
        assert not path.suits(weight, x)


def test_timing_finds_the_obvious() -> None:
    state = torch.random.get_rng_state()
    for faster in (csr_trains_faster, csr_infers_faster):
        assert faster(torch.Size((512, 512)), 500, 256)
        assert not faster(torch.Size((512, 512)), 512 * 512, 256)
    assert torch.equal(torch.random.get_rng_state(), state), "timing must not disturb the program's chance"
