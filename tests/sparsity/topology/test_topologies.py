"""Topologies: scores against their formulas, exact budgets at every step, and supports that are found."""

import statistics

import pytest
import torch

from benchmarks.sparsity.planted import random_weight
from hf_efficient.methods import SPARSITY
from hf_efficient.optimizer_state import Pace
from hf_efficient.sparsity.topology import GMP, MEST, SET, BiDST, RigL
from hf_efficient.sparsity.topology.levels import QUIET, input_levels, levelled, levels_of
from hf_efficient.sparsity.training.engine import SparseTraining
from tests.sparsity.problems import train


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


@pytest.mark.parametrize("topology", ["bidst", "rigl"])
@pytest.mark.parametrize("input_dim", [0, 1])
def test_a_loud_input_gets_no_more_new_weights_than_if_it_were_quiet(input_dim: int, topology: str) -> None:
    """Its raw gradients, a hundred times those of the others, would take every seat they can."""
    generator = torch.Generator().manual_seed(0)
    shape = (20, 30) if input_dim else (30, 20)
    g = torch.randn(20, 30, generator=generator)
    loud = g * torch.where(torch.arange(30) == 7, 100.0, 1.0)

    def shares(gradient: torch.Tensor, power: float) -> list[int]:
        weight = random_weight(shape, 20, 1)
        weight.input_dim = input_dim
        weight.gradient = (gradient if input_dim else gradient.T).flatten().clone()
        if topology == "rigl":
            indices, score = RigL(100, levelling=power).grow_scores(weight, torch.Generator())
            best = indices[score.topk(40).indices]
        else:
            rule = BiDST(100, candidates=2.0, levelling=power)
            rule.begin(weight)
            rule.observe(weight, 100, Pace(0.1, False, 0.0))
            best = weight.memory["candidates"]
        return torch.bincount(weight.input_of(best), minlength=30).tolist()

    assert shares(loud, 1.0) == shares(g / input_levels(g, 1), 0.0)
    assert shares(loud, 0.5) == shares(loud / input_levels(loud, 1).sqrt(), 0.0)
    assert shares(loud, 1.0)[7] < 6 < 15 < shares(loud, 0.0)[7]


@pytest.mark.parametrize(("shape", "input_dim"), [((6, 5), 1), ((6, 5), 0), ((4, 3, 2, 2), 1)])
def test_gradients_are_levelled_entry_by_entry(shape: tuple[int, ...], input_dim: int) -> None:
    weight = random_weight(shape, 6, 0)
    weight.input_dim = input_dim
    g = weight.gradient = torch.randn(weight.numel, generator=torch.Generator().manual_seed(2))
    levels = input_levels(g.view(shape), input_dim).sqrt()
    by_hand = [abs(float(g[p] / levels[weight.input_of(torch.tensor(p))])) for p in range(weight.numel)]
    assert levelled(weight, levels_of(weight, 0.5)).tolist() == pytest.approx(by_hand)
    assert torch.equal(levelled(weight, levels_of(weight, 0.0)), g.abs())


@pytest.mark.parametrize("input_dim", [0, 1])
def test_dormant_weights_move_by_levelled_gradients_also_between_exchanges(input_dim: int) -> None:
    weight = random_weight((6, 5), 6, 0)
    weight.input_dim = input_dim
    rule = BiDST(100, update_interval=10, score_interval=2, candidates=1.0, levelling=0.5)
    rule.begin(weight)
    generator = torch.Generator().manual_seed(1)
    whole, later = torch.randn(30, generator=generator), torch.randn(30, generator=generator)
    moved = torch.zeros(30)
    for step, g in ((2, whole), (4, later)):
        weight.gradient_indices = rule.gradient_indices(weight, step)
        weight.gradient = g if weight.gradient_indices is None else g[weight.gradient_indices]
        rule.observe(weight, step, Pace(0.1, False, 0.0))
        levels = input_levels(whole.view(6, 5), input_dim).sqrt()
        moved -= 2 * 0.1 * g / levels[weight.input_of(torch.arange(30))]
    candidates = weight.memory["candidates"]
    assert weight.memory["dormant"].tolist() == pytest.approx(moved[candidates].tolist())


@pytest.mark.parametrize("topology", ["bidst", "rigl", "set", "mest"])
def test_initial_sparsity_falls_along_gmps_curve_while_weights_are_exchanged(topology: str) -> None:
    weight = random_weight((10, 10), 60, 0)
    weight.budget = 10
    settings: dict[str, float] = {"candidates": 1.0} if topology == "bidst" else {}
    rule = SPARSITY.row(topology).implementation(200, update_interval=10, initial_sparsity=0.4, **settings)
    first, seen = set(weight.long_indices.tolist()), []

    def look(training: SparseTraining) -> None:
        seen.append(len(weight.values))
        assert len(weight.long_indices.unique()) == len(weight.values)
        assert not set(weight.long_indices.tolist()) & set(weight.memory.get("candidates", torch.empty(0)).tolist())

    train({"w": weight}, rule, 200, each_step=look)
    assert [seen[t - 1] for t in (1, 10, 70, 130, 140, 200)] == [
        60,
        *(10 + round(50 * (1 - t / 140) ** 3) for t in (10, 70, 130, 140)),
        10,
    ]
    assert set(weight.long_indices.tolist()) - first


def test_gmp_is_the_fall_without_exchanges() -> None:
    found = []
    for topology in (GMP(200, update_interval=10), RigL(200, update_interval=10, initial_sparsity=0, drop_fraction=0)):
        weight = random_weight((10, 10), 100, 0)
        weight.budget = 10
        topology.last_exchange = lambda: 150  # type: ignore[method-assign]
        topology.due = lambda step: step % 10 == 0 and step <= 150  # type: ignore[method-assign]
        train({"w": weight}, topology, 200)
        found.append((weight.indices, weight.values.detach()))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("topology", ["bidst", "rigl", "set", "mest"])
def test_a_weight_that_is_sparse_already_trains_on_with_as_many(topology: str) -> None:
    """An adapter that has fallen from dense, under a new optimizer: the fall would begin above what is active."""
    weight = random_weight((10, 10), 10, 0)
    rule = SPARSITY.row(topology).implementation(200, update_interval=10, initial_sparsity=0.0)
    seen: list[int] = []
    training = train({"w": weight}, rule, 200, each_step=lambda _: seen.append(len(weight.values)))
    assert seen == [10] * 200
    assert training.report()["mask_updates"] > 2


def test_the_fall_needs_no_exchanges() -> None:
    weight = random_weight((10, 10), 100, 0)
    weight.budget = 10
    rule = RigL(200, update_interval=10, initial_sparsity=0.0, drop_fraction=0.0)
    seen: list[int] = []
    train({"w": weight}, rule, 200, each_step=lambda _: seen.append(len(weight.values)))
    assert [seen[t - 1] for t in (10, 70, 140, 200)] == [
        10 + round(90 * (1 - t / 140) ** 3) for t in (10, 70, 140, 140)
    ]


def test_what_weights_were_at_the_start_is_lent_at_exchanges_only() -> None:
    weight = random_weight((10, 10), 20, 0)
    rule = SET(200, update_interval=10, grow_from="start")
    lent: list[bool] = []
    bases = {"w": torch.ones(10, 10)}
    train({"w": weight}, rule, 20, each_step=lambda _: lent.append(weight.start is not None), init="snip", bases=bases)
    assert not any(lent)
    assert bool((weight.values == 1.0).any())
