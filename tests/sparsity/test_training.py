"""The engine: optimizer state, first topologies, resuming, reports; and the loops it sits in."""

import copy
import io
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from hf_efficient import S2SAM, ZOSAM, BiDSTConfig, train_sparsely
from hf_efficient.sparsity import moments
from hf_efficient.sparsity import places as bits
from hf_efficient.sparsity.layer import BiDSTLayer
from hf_efficient.sparsity.topology import SET, BiDST, RigL, Static
from hf_efficient.sparsity.training import SparseTraining
from hf_efficient.sparsity.weight import SparseWeight
from tests.sparsity.models import ConvNet, convnet_inputs
from tests.sparsity.problems import random_weight, train

TOPOLOGIES = pytest.mark.parametrize("topology", ["bidst", "rigl", "set", "mest"])


def classifier(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    defaults = {"sparsity": 0.8, "target_modules": ["0", "2"], "update_interval": 4, "score_interval": 2}
    return get_peft_model(net, BiDSTConfig(**{**defaults, **settings}))


def batches(count: int, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 32, 20, generator=generator)
    return [(part, part[:, :4].argmax(1)) for part in x]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def run(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[Any]) -> None:
    for x, y in data:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model: nn.Module) -> list[SparseWeight]:
    return [m.sparse_weight("default") for m in model.modules() if isinstance(m, BiDSTLayer)]


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_moments_of_moved_weights_are_new_and_of_others_untouched() -> None:
    weight = random_weight((5, 5), 6, 0)
    optimizer = torch.optim.AdamW([weight.values], lr=0.1)
    weight.values.grad = torch.arange(1.0, 7.0)
    optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[weight.values].items()}
    moments.forget(optimizer, weight.values, torch.tensor([1, 4]))
    after = optimizer.state[weight.values]
    stay = torch.tensor([0, 2, 3, 5])
    assert after["exp_avg"][[1, 4]].tolist() == [0, 0]
    assert torch.equal(after["exp_avg"][stay], before["exp_avg"][stay])
    assert torch.allclose(after["exp_avg_sq"][[1, 4]], before["exp_avg_sq"][stay].mean())
    assert torch.equal(after["exp_avg_sq"][stay], before["exp_avg_sq"][stay])
    assert float(after["step"]) == float(before["step"]) == 1
    assert weight.values.grad.tolist() == [1, 0, 3, 4, 0, 6]


def test_a_grown_weight_does_not_burst_under_adam() -> None:
    """Same gradients for all; a zeroed second moment would make the steps of a new weight several times too long."""
    weight = SparseWeight((1, 64), 32)
    optimizer = torch.optim.Adam([weight.values], lr=0.01)
    generator = torch.Generator().manual_seed(0)

    def steps(count: int) -> torch.Tensor:
        start = weight.values.detach().clone()
        for _ in range(count):
            weight.values.grad = torch.randn(32, generator=generator)
            optimizer.step()
        return (weight.values.detach() - start).abs()

    steps(500)
    new = torch.arange(16)
    moments.forget(optimizer, weight.values, new)
    moved = steps(30)
    assert float(moved[:16].mean()) < 1.3 * float(moved[16:].mean())
    optimizer.state[weight.values]["exp_avg_sq"][new] = 0.0
    moved = steps(30)
    assert float(moved[:16].mean()) > 2 * float(moved[16:].mean())


def test_pace_is_the_mean_step_of_a_unit_gradient() -> None:
    for make, expected in ((torch.optim.SGD, 0.1), (torch.optim.Adam, 0.1 / 3), (torch.optim.Adagrad, 0.1 / 3)):
        parameter = nn.Parameter(torch.zeros(8))
        optimizer = make([parameter], lr=0.1)
        parameter.grad = torch.full((8,), 3.0)
        optimizer.step()
        assert moments.pace(optimizer, parameter) == pytest.approx(expected, rel=1e-5)
        if make is not torch.optim.SGD:
            assert float(parameter.detach().abs().mean()) == pytest.approx(expected * 3, rel=1e-5)


@pytest.mark.parametrize(("rule", "additive"), [("gradient", True), ("snip", False)])
def test_first_topology_by_gradient_or_saliency(rule: str, additive: bool) -> None:
    """The layer is as it was during the probing steps; then the k best of the summed gradients live."""
    weight, base = random_weight((4, 6), 5, 0), torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD([weight.values], lr=0.1)
    training = SparseTraining(
        {"w": weight}, optimizer, Static(100), first_living=rule, init_steps=2, bases={"w": base}, additive=additive
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
    assert set(weight.places.tolist()) == set(score.flatten().topk(5).indices.tolist())
    expected = torch.zeros(5) if additive else base.flatten()[weight.places]
    assert torch.equal(weight.values.detach(), expected)
    assert not weight.probing


def test_global_gradient_start_shares_one_budget_between_layers() -> None:
    weights = {"a": random_weight((10, 10), 10, 0), "b": random_weight((10, 10), 10, 1)}
    optimizer = torch.optim.Adam([w.values for w in weights.values()], lr=0.1)
    base = {name: torch.zeros(10, 10) for name in weights}
    training = SparseTraining(
        weights, optimizer, Static(100), first_living="gradient", bases=base, additive=True, global_budget=True
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

    training = SparseTraining({"w": weight}, optimizer, Watch(100, interval=50))
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
    training = SparseTraining({"w": weight}, optimizer, RigL(100, interval=1))
    before = weight.places.tolist()
    (weight.dense() * torch.inf).sum().backward()
    training.step()
    assert weight.places.tolist() == before
    optimizer.zero_grad()
    weight.dense().square().sum().backward()
    training.step()
    assert training.steps == 1
    assert weight.places.tolist() != before


def test_report_counts_what_happened() -> None:
    weight, seen = random_weight((10, 10), 20, 0), set()
    seen.update(weight.places.tolist())
    masks = [weight.alive()]

    def watch(_: Any) -> None:
        seen.update(weight.places.tolist())
        masks.append(weight.alive())

    training = train({"w": weight}, SET(total_steps=40, interval=5), 40, each_step=watch)
    report = training.report()
    changes = [(a, b) for a, b in itertools.pairwise(masks) if not torch.equal(a, b)]
    last, now = changes[-1]
    assert report["sparsity"] == pytest.approx(0.8)
    assert report["mask_updates"] == len(changes) == 4
    assert report["share_changed"] == pytest.approx(int((now & ~last).sum()) / 20)
    assert report["mask_iou"] == pytest.approx(int((now & last).sum()) / int((now | last).sum()))
    assert report["itop_rate"] == pytest.approx(len(seen) / 100)
    assert 0 < report["mask_time_share"] < 1
    assert bits.unpack(training.state["ever"]["w"], 100).sum() == len(seen)


@TOPOLOGIES
def test_a_torch_loop_resumes_bit_for_bit(topology: str) -> None:
    """20 steps at once, or 10, everything through files, and 10 more."""
    data = batches(20)

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = classifier(topology=topology)
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


def test_a_forward_before_training_begins_does_no_harm() -> None:
    """It times the layer and remembers the result, which is no reason to think that training had begun."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
    model = get_peft_model(net, BiDSTConfig(sparsity=0.9, target_modules=["0"], update_interval=2, score_interval=1))
    x = torch.randn(8, 256)
    model(x)
    assert "compact" in weights_of(model)[0].memory
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    train_sparsely(model, optimizer, total_steps=8)
    run(model, optimizer, [(x, torch.arange(8) % 4)] * 8)
    assert "candidates" in weights_of(model)[0].memory
    assert "compact" in weights_of(model)[0].memory


def test_accumulated_micro_batches_are_one_batch() -> None:
    """In float64, where the order of sums does not decide who lives."""
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
    before = [w.places.tolist() for w in weights_of(model)]
    scaler.scale(F.cross_entropy(model(x * torch.inf), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert training.steps == 0
    assert [w.places.tolist() for w in weights_of(model)] == before
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    assert training.steps == 1
    assert [w.places.tolist() for w in weights_of(model)] != before


@pytest.mark.parametrize("outer", [S2SAM, ZOSAM])
def test_sharpness_aware_optimizers_perturb_living_weights_only(outer: Any) -> None:
    model = classifier(topology="bidst")
    optimizer = outer(trainable(model), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
    training = train_sparsely(model, optimizer, total_steps=40)
    perturbed = 0
    for x, y in batches(40):
        before = [w.values.detach().clone() for w in weights_of(model)]
        with optimizer.perturb(lambda x=x, y=y: F.cross_entropy(model(x), y)):
            for weight, values in zip(weights_of(model), before):
                dense = weight.dense().flatten()
                assert int(dense[~weight.alive()].count_nonzero()) == 0
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


def test_what_cannot_train_is_refused() -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"does not train the living weights of .*after get_peft_model"):
        train_sparsely(model, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 10)
    with pytest.raises(ValueError, match="no BiDST adapter 'other'"):
        train_sparsely(model, torch.optim.SGD(trainable(model), lr=0.1), 10, adapter_name="other")
    with pytest.raises(ValueError, match="no BiDST adapter"):
        train_sparsely(nn.Linear(2, 2), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 10)
    weight = random_weight((4, 4), 4, 0)
    weight.values.data = weight.values.data[:2]
    with pytest.raises(ValueError, match="sharded"):
        SparseTraining({"w": weight}, torch.optim.SGD([weight.values], lr=0.1), BiDST(10))
