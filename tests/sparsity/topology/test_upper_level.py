"""BiDST's two levels: scores against differences and whole runs, dormant weights against active ones, controls."""

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.sparsity.controls import Chance, Gathered, Off, Turned
from benchmarks.sparsity.planted import random_weight, recover
from hf_efficient.optimizer_state import Pace
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.topology import BiDST
from hf_efficient.sparsity.topology.bidst import hyper_gradient, score
from hf_efficient.sparsity.training.engine import SparseTraining
from tests.sparsity.problems import train


def test_hyper_gradient_is_exact_where_the_lower_level_has_no_curvature() -> None:
    """L(z) = c z: theta*(m) = -m c / gamma, so F(m) = L(m theta*(m)) = -sum m^2 c^2 / gamma, differentiated by hand."""
    torch.manual_seed(0)
    c, m, gamma = torch.randn(7, dtype=torch.float64), torch.rand(7, dtype=torch.float64), 0.3
    theta = -m * c / gamma
    assert torch.allclose(hyper_gradient(theta, c, m, 1 / gamma), -2 * m * c**2 / gamma, rtol=1e-12)


@pytest.mark.parametrize("mask", ["soft", "hard"])
def test_hyper_gradient_equals_finite_differences_of_the_solved_lower_level(mask: str) -> None:
    """Any smooth L. The lower level is solved on the model the method assumes (d2L/dtheta2 := 0 around theta): there
    theta*(m') = theta - (m' g(m') - m g(m)) / gamma. Central differences in float64 of L(m' theta*(m'))."""
    torch.manual_seed(1)
    a, b = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    theta = torch.randn(5, dtype=torch.float64)
    m = torch.rand(5, dtype=torch.float64) if mask == "soft" else torch.tensor([1, 0, 1, 1, 0], dtype=torch.float64)
    gamma, step = 0.7, 1e-6

    def loss(z: Tensor) -> Tensor:
        return torch.nn.functional.softplus(a @ z - b).sum() + torch.sin(z).sum()

    z = (m * theta).requires_grad_()
    (g,) = torch.autograd.grad(loss(z), z)

    def upper(moved: Tensor) -> Tensor:
        return loss(moved * (theta - (moved - m) * g / gamma))  # d2L/dmdtheta = diag(g): H := 0

    brute = torch.stack([(upper(m + step * e) - upper(m - step * e)) / (2 * step) for e in torch.eye(5).double()])
    assert torch.allclose(hyper_gradient(theta, g, m, 1 / gamma), brute, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["SGD", "momentum", "Adam"])
def test_summed_over_a_run_the_hyper_gradient_is_the_growth_of_the_squared_weight(optimizer: str) -> None:
    """With 1/gamma = eta / 2, the steps' length; the gradient is what the optimizer makes of it, its step / -eta."""
    eta = 0.05
    theta = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    make: Any = torch.optim.Adam if optimizer == "Adam" else torch.optim.SGD
    stepper = make([theta], lr=eta, **({"momentum": 0.9} if optimizer == "momentum" else {}))
    first, psi = theta.detach().clone(), theta.detach().square()
    for _ in range(50):
        before = theta.detach().clone()
        stepper.zero_grad()
        (theta - target).cosh().log().sum().backward()
        stepper.step()
        g = (before - theta.detach()) / eta
        psi -= 2 * eta * hyper_gradient(before, g, 1.0, eta / 2)
    assert (theta.detach() - first).abs().mean() > 0.1
    assert torch.allclose(psi, score(theta.detach()).square(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.01}),
        ("SGD", {}),
        ("AdamW", {"weight_decay": 0.1}),
        ("Adam", {}),
        ("Adam", {"weight_decay": 0.1}),  # a part of the gradient, unlike AdamW's
        ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ],
)
def test_dormant_weights_go_where_they_would_go_if_they_were_active(
    optimizer: str, settings: dict[str, float], interval: int
) -> None:
    """The same gradients for an active weight and a dormant one, of many scales; an interval that hides nothing."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-3, 1, 50)
    weight = SparseWeight((2, 50), 50)
    weight.select(torch.arange(50), 0.2 * torch.ones(50))
    stepper = getattr(torch.optim, optimizer)([weight.values], lr=0.002, **settings)
    rule = BiDST(100_000, update_interval=99_999, score_interval=interval, candidates=1.0, levelling=0.0)
    training = SparseTraining({"w": weight}, stepper, rule, init="magnitude", bases={"w": 0.2 * torch.ones(2, 50)})
    drift = torch.randn(50, generator=generator)
    for t in range(400):
        if t % interval == 0:
            g = scale * (drift + 0.5 * torch.randn(50, generator=generator)) * (1 if t < 300 else 0.0001)
        weight.dense().backward(torch.cat([g, g]).view(2, 50))
        stepper.step()
        training.step()
        stepper.zero_grad()
    order = weight.memory["candidates"].argsort()
    assert weight.memory["candidates"][order].tolist() == list(range(50, 100))
    dormant, active = weight.memory["dormant"][order], weight.values.detach()
    assert (dormant - active).norm() < 0.1 * (active - 0.2).norm()


def test_the_mask_is_the_exact_top_k_of_all_scores_when_nothing_caps_it() -> None:
    weight, rule = scored()
    active, candidates = rule.drop_scores(weight), rule.grow_scores(weight, torch.Generator())[1]
    whole = torch.full((100,), -torch.inf)
    whole[weight.long_indices], whole[weight.memory["candidates"]] = active, candidates
    ((slots, indices),) = rule.plan([weight], 0, torch.Generator())
    weight.swap(slots, indices, rule.before_exchange(weight, slots, indices))
    assert len(slots) > 3
    assert set(weight.long_indices.tolist()) == set(whole.topk(20).indices.tolist())


def scored() -> tuple[SparseWeight, BiDST]:
    weight = random_weight((10, 10), 20, 0)
    rule = BiDST(10**9, drop_fraction=1.0, candidates=2.0)
    rule.begin(weight)
    weight.gradient = torch.randn(100, generator=torch.Generator().manual_seed(1))
    rule.observe(weight, 100, Pace(0.0, False, 0.0))
    weight.memory["dormant"] = 0.2 * torch.randn(40, generator=torch.Generator().manual_seed(2))
    return weight, rule


def test_a_dropped_weight_becomes_a_candidate_and_a_grown_one_enters_at_the_edge_of_the_mask() -> None:
    weight = SparseWeight((2, 4), 3)
    weight.select(torch.tensor([1, 6, 0]), torch.tensor([0.1, 2.0, -0.3]))
    rule = BiDST(100, drop_fraction=0.4, candidates=1.0)
    weight.memory = {
        "candidates": torch.tensor([7, 3]),
        "dormant": torch.tensor([0.05, -1.0]),
        "square": torch.tensor([5.0, 6.0]),
        "reads": torch.tensor([1.0, 2.0]),
    }
    ((slots, indices),) = rule.plan([weight], 0, torch.Generator())
    assert (slots.tolist(), indices.tolist()) == ([0], [3])
    weight.swap(slots, indices, rule.before_exchange(weight, slots, indices))
    assert weight.indices.tolist() == [3, 6, 0]
    assert weight.values.tolist() == pytest.approx([-0.3, 2.0, -0.3])
    memory = {name: tensor.tolist() for name, tensor in weight.memory.items()}
    assert memory == {
        "candidates": [7, 1],
        "dormant": pytest.approx([0.05, 0.1]),
        "square": [5.0, 0.0],
        "reads": [1.0, 0.0],
    }


def test_candidates_are_the_best_dormant_weights_and_the_largest_gradients_which_begin_at_the_start() -> None:
    weight, rule = scored()
    best = weight.memory["candidates"][weight.memory["dormant"].abs().topk(20).indices].tolist()
    weight.gradient = torch.randn(100, generator=torch.Generator().manual_seed(3))
    weight.start = torch.linspace(1, 2, 100)
    weight.memory["levels"] = torch.ones(10)
    rule.after_exchange(weight)
    rest = [i for i in range(100) if i not in weight.long_indices.tolist() and i not in best]
    largest = sorted(rest, key=lambda i: -abs(float(weight.gradient[i])))[:20]  # type: ignore[index]
    assert set(weight.memory["candidates"].tolist()) == {*best, *largest}
    at = {int(i): float(v) for i, v in zip(weight.memory["candidates"], weight.memory["dormant"])}
    assert [at[i] for i in largest] == pytest.approx([float(weight.start[i]) for i in largest])


@pytest.mark.parametrize(
    ("init", "additive", "first"), [("random", False, 0.0), ("magnitude", False, 0.7), ("snip", True, 0.0)]
)
def test_dormant_weights_begin_at_what_the_layer_had_before_training(init: str, additive: bool, first: float) -> None:
    weight = random_weight((10, 10), 10, 0)
    stepper = torch.optim.SGD([weight.values], lr=0.0)
    bases = {"w": torch.full((10, 10), 0.7)}
    training = SparseTraining(
        {"w": weight},
        stepper,
        BiDST(100, update_interval=5, score_interval=1),
        init=init,
        bases=bases,
        additive=additive,
    )
    for _ in range(3):
        (weight.dense(bases["w"] if additive else None).square().sum() / 2).backward()
        stepper.step()
        training.step()
        stepper.zero_grad()
    assert len(weight.memory["dormant"]) == 50
    assert weight.memory["dormant"].tolist() == pytest.approx([first] * 50)
    assert weight.start is None


def test_a_dropped_weight_comes_back_when_it_must() -> None:
    """The loss wants weight 0, then for a while weight 1, then weight 0 again; one weight may be active."""
    weight = SparseWeight((2, 1), 1)
    optimizer = torch.optim.SGD([weight.values], lr=0.1)
    rule = BiDST(total_steps=10_000, update_interval=5, drop_fraction=1.0, score_interval=1)
    training = SparseTraining({"w": weight}, optimizer, rule)
    lived = []
    for step in range(600):
        wanted = torch.tensor([0.0, 1.0]) if 200 <= step < 400 else torch.tensor([1.0, 0.0])
        (weight.dense().flatten() - wanted).square().sum().backward()
        optimizer.step()
        training.step()
        optimizer.zero_grad()
        lived.append(int(weight.indices[0]))
    assert (lived[199], lived[399], lived[599]) == (0, 1, 0)


def test_reading_scored_weights_alone_equals_reading_all_gradients() -> None:
    class ReadingAll(BiDST):
        def gradient_indices(self, weight: SparseWeight, step: int) -> None:
            return None

    results = []
    for rule in (BiDST, ReadingAll):
        weight = random_weight((12, 10), 24, 0)
        training = train(
            {"w": weight}, rule(200, update_interval=9, candidates=1.5, score_interval=2, levelling=0.0), 200
        )
        assert training.report()["mask_updates"] > 5
        results.append((weight.indices, weight.values.detach(), *weight.memory.values()))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_bidst_finds_a_planted_support_better_than_set_and_rigl_over_ten_seeds() -> None:
    found = {name: [recover(name, seed) for seed in range(10)] for name in ("bidst", "rigl", "set")}
    assert statistics.mean(found["bidst"]) > 0.95
    assert all(b > r for b, r in zip(found["bidst"], found["rigl"])), found
    assert all(b > s for b, s in zip(found["bidst"], found["set"])), found


@pytest.mark.parametrize("control", [Off, Turned, Chance, Gathered])
def test_without_what_is_learned_or_with_its_sign_turned_the_planted_support_is_not_found(control: type[BiDST]) -> None:
    for seed in range(3):
        assert recover("bidst", seed, implementation=control) < recover("bidst", seed) - 0.2


def fine_tuned(rule: Any, seed: int, k: int = 60) -> float:
    """Error left of a sparse model that begins as a dense pretrained one, and must learn what differs in its task.

    y = (W_0 + D) x with W_0 dense and D large in a few entries, of which W_0 was small in many.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(20, 30, generator=generator)
    change = torch.zeros(600)
    change[torch.randperm(600, generator=generator)[:30]] = 3 * torch.randn(30, generator=generator).sign()
    target = start + change.view(20, 30)
    weight = SparseWeight((20, 30), k)
    first = start.flatten().abs().topk(k).indices
    weight.select(first, start.flatten()[first])
    stepper = torch.optim.Adam([weight.values], lr=0.02)
    training = SparseTraining({"w": weight}, stepper, rule, init="magnitude", bases={"w": start})
    for _ in range(rule.total_steps):
        x = torch.randn(16, 30, generator=generator)
        (x @ (weight.dense() - target).T).square().sum(1).mean().backward()
        stepper.step()
        training.step()
        stepper.zero_grad()
    return float((weight.dense().detach() - target).square().sum() / target.square().sum())


@pytest.mark.parametrize("control", [Off, Turned, Chance])
def test_controls_are_worse_in_a_small_fine_tuning(control: type[BiDST]) -> None:
    settings: dict[str, Any] = {"total_steps": 300, "update_interval": 10}
    errors = {rule: [fine_tuned(rule(**settings), seed) for seed in range(3)] for rule in (BiDST, control)}
    assert all(ours < other for ours, other in zip(errors[BiDST], errors[control])), errors
