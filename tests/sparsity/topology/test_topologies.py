"""Topologies: scores against their formulas, exact budgets at every step, and supports that are found."""

import statistics

import pytest
import torch

from hf_efficient.methods import SPARSITY
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.topology import GMP, MEST, SET, BiDST, RigL
from hf_efficient.sparsity.topology.bidst import QUIET, gumbel_slope, hyper_gradient, input_levels
from hf_efficient.sparsity.training.engine import SparseTraining
from tests.sparsity.problems import random_weight, recover, train


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

    def loss(z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(a @ z - b).sum() + torch.sin(z).sum()

    z = (m * theta).requires_grad_()
    (g,) = torch.autograd.grad(loss(z), z)

    def upper(moved: torch.Tensor) -> torch.Tensor:
        return loss(moved * (theta - (moved - m) * g / gamma))  # d2L/dmdtheta = diag(g): H := 0

    brute = torch.stack([(upper(m + step * e) - upper(m - step * e)) / (2 * step) for e in torch.eye(5).double()])
    assert torch.allclose(hyper_gradient(theta, g, m, 1 / gamma), brute, rtol=1e-6, atol=1e-8)


def test_gumbel_slope_is_the_derivative_of_the_relaxed_mask_and_its_noise_is_logistic() -> None:
    psi, threshold = torch.linspace(-2, 2, 9), torch.tensor(0.3)
    u = torch.rand(9, generator=torch.Generator().manual_seed(5)).double()
    gumbels = u.logit()

    def relaxed(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x - 0.3 + gumbels)

    step = 1e-5
    brute = (relaxed(psi.double() + step) - relaxed(psi.double() - step)) / (2 * step)
    assert torch.allclose(gumbel_slope(psi, threshold, torch.Generator().manual_seed(5)).double(), brute, atol=1e-5)


def test_bidst_keeps_the_exact_top_k_of_all_scores_when_nothing_caps_it() -> None:
    weight = random_weight((10, 10), 20, 0)
    rule = BiDST(total_steps=10**9, drop_fraction=1.0, candidates=2.0)
    rule.begin(weight)
    weight.gradient = torch.randn(100, generator=torch.Generator().manual_seed(1))
    rule.after_exchange(weight)
    weight.memory["dormant"] = 0.2 * torch.randn(40, generator=torch.Generator().manual_seed(2))
    active, candidates = rule.scores(weight)
    score = torch.full((100,), -torch.inf)
    score[weight.long_indices], score[weight.memory["candidates"]] = active, candidates
    ((slots, indices),) = rule.plan([weight], 0, torch.Generator())
    rule.before_exchange(weight, slots, indices)
    weight.swap(slots, indices)
    assert len(slots) > 3
    assert set(weight.long_indices.tolist()) == set(score.topk(20).indices.tolist())


def test_what_dies_becomes_a_candidate_with_the_value_it_had() -> None:
    weight = SparseWeight((2, 4), 2)
    weight.select(torch.tensor([1, 6]), torch.tensor([0.1, 2.0]))
    rule = BiDST(total_steps=100, drop_fraction=1.0, candidates=1.0)
    weight.memory = {
        "candidates": torch.tensor([7, 3]),
        "dormant": torch.tensor([0.0, -1.0]),
        "learned": torch.zeros(2),
        "candidate_learned": torch.zeros(2),
    }
    ((slots, indices),) = rule.plan([weight], 0, torch.Generator())
    assert (slots.tolist(), indices.tolist()) == ([0], [3])
    rule.before_exchange(weight, slots, indices)
    weight.swap(slots, indices)
    assert weight.memory["candidates"].tolist() == [7, 1]
    assert weight.memory["dormant"].tolist() == pytest.approx([0.0, 0.1])
    assert (weight.indices.tolist(), weight.values.tolist()) == ([3, 6], [0.0, 2.0])


def test_scores_of_the_baselines_are_their_formulas() -> None:
    weight = random_weight((6, 6), 8, 3)
    weight.gradient = torch.randn(36, generator=torch.Generator().manual_seed(4))
    size, g = weight.values.detach().abs(), weight.gradient
    assert torch.equal(SET(100).drop_scores(weight), size)
    assert torch.equal(RigL(100).drop_scores(weight), size)
    assert torch.equal(MEST(100, gradient_weight=0.5).drop_scores(weight), size + 0.5 * g[weight.long_indices].abs())
    indices, score = RigL(100).grow_scores(weight, torch.Generator())
    assert set(indices.tolist()) == set(range(36)) - set(weight.long_indices.tolist())
    assert torch.equal(score, g[indices].abs())


def test_rigl_exchanges_the_smallest_for_the_largest_gradients() -> None:
    weight = random_weight((6, 6), 10, 3)
    weight.gradient = torch.randn(36, generator=torch.Generator().manual_seed(4))
    ((slots, indices),) = RigL(total_steps=10**9, drop_fraction=0.4).plan([weight], 0, torch.Generator())
    order = weight.values.detach().abs().argsort()
    inactive = sorted(set(range(36)) - set(weight.long_indices.tolist()), key=lambda p: -abs(float(weight.gradient[p])))
    assert sorted(slots.tolist()) == sorted(order[:4].tolist())
    assert sorted(indices.tolist()) == sorted(inactive[:4])


def test_share_falls_along_a_cosine_and_topology_rests_at_the_end() -> None:
    rule = SET(total_steps=1000, update_interval=10, drop_fraction=0.4, stop_fraction=0.5)
    assert [rule.drop_fraction_at(t) for t in (0, 250, 500, 900)] == pytest.approx([0.4, 0.2, 0.0, 0.0])
    assert [t for t in range(1, 1001) if rule.due(t)] == list(range(10, 500, 10))


@pytest.mark.parametrize("global_budget", [False, True])
@pytest.mark.parametrize(("topology", "steps"), [("bidst", 2000), ("rigl", 500), ("set", 500), ("mest", 500)])
def test_budget_is_exact_at_every_step(topology: str, steps: int, global_budget: bool) -> None:
    weights = {"a": random_weight((12, 10), 24, 0), "b": random_weight((7, 5), 5, 1), "c": random_weight((3, 1), 1, 2)}
    total = 30

    def check(training: object) -> None:
        counts = [len(w.values) for w in weights.values()]
        assert sum(counts) == total
        assert min(counts) >= 1
        assert global_budget or counts == [24, 5, 1]
        for w in weights.values():
            assert len(w.long_indices.unique()) == len(w.values) == len(w.indices)
            assert 0 <= int(w.long_indices.min()) <= int(w.long_indices.max()) < w.numel
            candidates = w.memory.get("candidates", torch.empty(0))
            assert not set(candidates.tolist()) & set(w.long_indices.tolist())

    rule = SPARSITY.row(topology).implementation(total_steps=steps, update_interval=3)
    training = train(weights, rule, steps, each_step=check, global_budget=global_budget)
    assert training.report()["mask_updates"] > 20


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


def test_gmp_falls_from_dense_to_its_budget() -> None:
    weight = random_weight((10, 10), 100, 0)
    weight.budget = 10
    seen = []
    train(
        {"w": weight},
        GMP(total_steps=200, update_interval=10),
        200,
        each_step=lambda _: seen.append(len(weight.values)),
    )
    assert seen[0] == 100
    assert seen == sorted(seen, reverse=True)
    assert seen[49] == 10 + round(90 * (1 - 50 / 150) ** 3)
    assert seen[150:] == [10] * 50


def test_bidst_finds_a_planted_support_better_than_set_and_rigl_over_ten_seeds() -> None:
    found = {name: [recover(name, seed) for seed in range(10)] for name in ("bidst", "rigl", "set")}
    assert statistics.mean(found["bidst"]) > 0.95
    assert all(b > r for b, r in zip(found["bidst"], found["rigl"])), found
    assert all(b > s for b, s in zip(found["bidst"], found["set"])), found


def test_bidst_reading_scored_weights_alone_equals_reading_all_gradients() -> None:
    class ReadingAll(BiDST):
        def gradient_indices(self, weight: SparseWeight, step: int) -> None:
            return None

    results = []
    for rule in (BiDST, ReadingAll):
        weight = random_weight((12, 10), 24, 0)
        training = train(
            {"w": weight}, rule(total_steps=200, update_interval=9, candidates=1.5, score_interval=2, fairness=0.0), 200
        )
        assert training.report()["mask_updates"] > 5
        results.append((weight.indices, weight.values.detach(), weight.memory["dormant"], weight.memory["learned"]))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_input_levels_are_root_mean_squares_of_each_input() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(6, 4, generator=generator) * torch.tensor([1.0, 30.0, 0.5, 0.0])
    whole = statistics.mean(float(v) ** 2 for v in g.flatten()) ** 0.5
    expected = [statistics.mean(float(v) ** 2 for v in g[:, i]) ** 0.5 / whole for i in range(3)]
    assert input_levels(g, 1).tolist() == pytest.approx([*expected, QUIET], rel=1e-5)
    assert torch.allclose(input_levels(g.T, 0), input_levels(g, 1))
    assert input_levels(torch.zeros(3, 2), 1).tolist() == [1.0, 1.0]
    kernel = torch.randn(5, 3, 2, 2, generator=generator)  # each position of a kernel sees inputs of its own
    assert torch.equal(input_levels(kernel, 1), input_levels(kernel.flatten(1), 1))


@pytest.mark.parametrize("input_dim", [0, 1])
def test_a_loud_input_gets_no_more_candidates_per_input_than_if_it_were_quiet(input_dim: int) -> None:
    """Its raw gradients, a hundred times those of the others, would take every seat they can."""
    generator = torch.Generator().manual_seed(0)
    shape = (20, 30) if input_dim else (30, 20)
    g = torch.randn(20, 30, generator=generator)
    loud = g * torch.where(torch.arange(30) == 7, 100.0, 1.0)

    def shares(gradient: torch.Tensor, fairness: float) -> list[int]:
        weight = random_weight(shape, 20, 1)
        weight.input_dim = input_dim
        rule = BiDST(total_steps=100, candidates=2.0, fairness=fairness)
        rule.begin(weight)
        weight.gradient = (gradient if input_dim else gradient.T).flatten().clone()
        rule.observe(weight, 10, 0.1, torch.Generator())
        return torch.bincount(weight.input_of(weight.memory["candidates"]), minlength=30).tolist()

    assert shares(loud, 1.0) == shares(g / input_levels(g, 1), 0.0)
    assert shares(loud, 0.5) == shares(loud / input_levels(loud, 1).sqrt(), 0.0)
    assert shares(loud, 1.0)[7] < 6 < 15 < shares(loud, 0.0)[7]


def test_levels_of_the_last_whole_reading_serve_the_scored_weights() -> None:
    weight = random_weight((6, 5), 6, 0)
    rule = BiDST(total_steps=100, update_interval=10, score_interval=1, candidates=1.0, fairness=1.0)
    rule.begin(weight)
    generator = torch.Generator().manual_seed(1)
    whole, later = torch.randn(30, generator=generator), torch.randn(30, generator=generator)
    weight.gradient = whole.clone()
    rule.observe(weight, 1, 0.1, torch.Generator())
    weight.gradient_indices = rule.gradient_indices(weight, 2)
    assert weight.gradient_indices is not None
    weight.gradient = later[weight.gradient_indices]
    rule.observe(weight, 2, 0.1, torch.Generator())
    levels = input_levels(whole.view(6, 5), 1)
    expected = [float(later[p] / levels[p % 5]) for p in weight.gradient_indices.tolist()]
    assert weight.gradient.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("shape", "input_dim"), [((6, 5), 1), ((6, 5), 0), ((4, 3, 2, 2), 1)])
def test_watched_and_whole_readings_are_levelled_alike(shape: tuple[int, ...], input_dim: int) -> None:
    weight = random_weight(shape, 6, 0)
    weight.input_dim = input_dim
    rule = BiDST(total_steps=100, fairness=0.5)
    g = torch.randn(weight.numel, generator=torch.Generator().manual_seed(2))
    weight.gradient = g.clone()
    rule.level(weight)
    whole = weight.gradient
    weight.gradient_indices = torch.arange(0, weight.numel, 3)
    weight.gradient = g[weight.gradient_indices]
    rule.level(weight)
    torch.testing.assert_close(weight.gradient, whole[weight.gradient_indices])
    levels = input_levels(g.view(shape), input_dim).sqrt()
    by_hand = [float(g[p] / levels[weight.input_of(torch.tensor(p))]) for p in range(weight.numel)]
    assert whole.tolist() == pytest.approx(by_hand)
