"""The engine: first topologies, gradients as it sees them, reports, refusals."""

import itertools
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from benchmarks.sparsity.planted import random_weight
from hf_efficient import BiDSTConfig, train_sparsely
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.storage import mask_encoding
from hf_efficient.sparsity.topology import SET, BiDST, RigL, Static
from hf_efficient.sparsity.training.engine import SparseTraining
from tests.sparsity.loops import classifier, run, trainable, weights_of
from tests.sparsity.problems import train


@pytest.mark.parametrize(("rule", "additive"), [("gradient", True), ("snip", False)])
def test_first_topology_by_gradient_or_saliency(rule: str, additive: bool) -> None:
    """The layer is as it was during the probing steps; then the k best of the summed gradients are active."""
    weight, base = random_weight((4, 6), 5, 0), torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD([weight.values], lr=0.1)
    training = SparseTraining(
        {"w": weight}, optimizer, Static(100), init=rule, init_steps=2, bases={"w": base}, additive=additive
    )
    total, generator = torch.zeros(4, 6), torch.Generator().manual_seed(3)
    for _ in range(2):
        slope = torch.randn(4, 6, generator=generator)
        whole = weight.dense(base)
        assert torch.equal(whole, base)
        (whole * slope).sum().backward()
        optimizer.step()
        training.step()
        optimizer.zero_grad()
        total += slope
    score = total.abs() if rule == "gradient" else (total * base).abs()
    assert set(weight.long_indices.tolist()) == set(score.flatten().topk(5).indices.tolist())
    expected = torch.zeros(5) if additive else base.flatten()[weight.long_indices]
    assert torch.equal(weight.values.detach(), expected)
    assert not weight.probing


def test_global_gradient_start_shares_one_budget_between_layers() -> None:
    weights = {"a": random_weight((10, 10), 10, 0), "b": random_weight((10, 10), 10, 1)}
    optimizer = torch.optim.Adam([w.values for w in weights.values()], lr=0.1)
    base = {name: torch.zeros(10, 10) for name in weights}
    training = SparseTraining(
        weights, optimizer, Static(100), init="gradient", bases=base, additive=True, global_budget=True
    )
    loss = (weights["a"].dense(base["a"]) * 5 + weights["b"].dense(base["b"])).sum()
    loss.backward()
    optimizer.step()
    training.step()
    assert (len(weights["a"].values), len(weights["b"].values)) == (19, 1)
    assert optimizer.state[weights["a"].values]["exp_avg"].shape == (19,)
    (weights["a"].dense(base["a"]) + weights["b"].dense(base["b"])).sum().backward()
    optimizer.step()
    assert float(weights["a"].values.detach().abs().min()) > 0


def test_seen_gradient_has_the_scale_of_the_clipped_one() -> None:
    weight = random_weight((4, 4), 6, 0)
    optimizer = torch.optim.SGD([weight.values], lr=0.0)
    seen: list[torch.Tensor] = []

    class Watch(RigL):
        def reads_gradient(self, step: int) -> bool:
            return True

        def observe(self, weight: SparseWeight, *_: Any) -> None:
            seen.append(weight.gradient.clone())

    training = SparseTraining({"w": weight}, optimizer, Watch(100, update_interval=50))
    slope = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    for scale in (1.0, 1024.0):
        (weight.dense() * slope * scale).sum().backward()
        weight.values.grad *= 0.25 / scale  # what a loss scaler and clipping do to it
        training.step()
        optimizer.zero_grad()
        assert torch.allclose(seen[-1], 0.25 * slope.flatten())


def test_a_step_that_overflowed_moves_nothing() -> None:
    weight = random_weight((6, 6), 8, 0)
    optimizer = torch.optim.SGD([weight.values], lr=0.1)
    training = SparseTraining({"w": weight}, optimizer, RigL(100, update_interval=1))
    before = weight.long_indices.tolist()
    (weight.dense() * torch.inf).sum().backward()
    training.step()
    assert weight.long_indices.tolist() == before
    optimizer.zero_grad()
    weight.dense().square().sum().backward()
    training.step()
    assert training.steps == 1
    assert weight.long_indices.tolist() != before


def test_report_counts_what_happened() -> None:
    weight, seen = random_weight((10, 10), 20, 0), set()
    seen.update(weight.long_indices.tolist())
    masks = [weight.mask()]

    def watch(_: Any) -> None:
        seen.update(weight.long_indices.tolist())
        masks.append(weight.mask())

    training = train({"w": weight}, SET(total_steps=40, update_interval=5), 40, each_step=watch)
    report = training.report()
    changes = [(a, b) for a, b in itertools.pairwise(masks) if not torch.equal(a, b)]
    last, now = changes[-1]
    assert report["sparsity"] == pytest.approx(0.8)
    assert report["mask_updates"] == len(changes) == 4
    assert report["share_changed"] == pytest.approx(int((now & ~last).sum()) / 20)
    assert report["mask_iou"] == pytest.approx(int((now & last).sum()) / int((now | last).sum()))
    assert report["itop_rate"] == pytest.approx(len(seen) / 100)
    assert 0 < report["mask_time_share"] < 1
    assert mask_encoding.unpack(training.state["ever"]["w"], 100).sum() == len(seen)


def test_a_forward_before_training_begins_does_no_harm() -> None:
    """It times the layer and remembers the result, which is no reason to think that training had begun."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
    model = get_peft_model(net, BiDSTConfig(sparsity=0.9, target_modules=["0"], update_interval=2, score_interval=1))
    x = torch.randn(8, 256)
    model(x)
    assert "csr" in weights_of(model)[0].memory
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    train_sparsely(model, optimizer, total_steps=8)
    run(model, optimizer, [(x, torch.arange(8) % 4)] * 8)
    assert "candidates" in weights_of(model)[0].memory
    assert "csr" in weights_of(model)[0].memory


def test_what_cannot_train_is_refused() -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"does not train the active weights of .*after get_peft_model"):
        train_sparsely(model, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 10)
    for steps in (0, -5, "10", 2.5):
        with pytest.raises(ValueError, match=rf"total_steps='?{steps}'? is out of range; expected a whole number >= 1"):
            train_sparsely(model, torch.optim.SGD(trainable(model), lr=0.1), steps)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no BiDST adapter 'other'; it has 'default'"):
        train_sparsely(model, torch.optim.SGD(trainable(model), lr=0.1), 10, adapter_name="other")
    with pytest.raises(ValueError, match="no BiDST adapter"):
        train_sparsely(nn.Linear(2, 2), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 10)
    weight = random_weight((4, 4), 4, 0)
    weight.values.data = weight.values.data[:2]
    with pytest.raises(ValueError, match="sharded"):
        SparseTraining({"w": weight}, torch.optim.SGD([weight.values], lr=0.1), BiDST(10))
