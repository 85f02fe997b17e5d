"""Budgets: exact totals, and ERK against its definition."""

import math

import pytest

from hf_efficient.sparsity.topology import distribution as budget

RESNET = [(16, 1, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)]
MLP = [(300, 784), (100, 300)]


@pytest.mark.parametrize("shapes", [RESNET, MLP, [(7,), (3, 5)]])
@pytest.mark.parametrize("density", [0.5, 0.1, 0.05, 0.02, 1.0])
def test_erk_spends_the_budget_exactly_and_never_more_than_a_layer_has(
    shapes: list[tuple[int, ...]], density: float
) -> None:
    sizes = [math.prod(s) for s in shapes]
    counts = budget.erk(shapes, density)
    assert sum(counts) == math.floor(density * sum(sizes) + 0.5)
    assert all(0 <= k <= n for k, n in zip(counts, sizes))


def test_erk_density_is_proportional_where_no_layer_is_full() -> None:
    counts = budget.erk(MLP, 0.05)
    density = [k / math.prod(s) for k, s in zip(counts, MLP)]
    wanted = [sum(s) / math.prod(s) for s in MLP]
    assert density[1] / density[0] == pytest.approx(wanted[1] / wanted[0], rel=1e-3)


def test_erk_fills_small_layers_and_gives_the_rest_to_the_others() -> None:
    counts = budget.erk(RESNET, 0.3)
    assert counts[0] == 144  # 36 / 144 per weight is far above all others
    left = sum(counts) - counts[0]
    raw = [sum(s) for s in RESNET[1:]]
    full = [k == math.prod(s) for k, s in zip(counts[1:], RESNET[1:])]
    free = [i for i, f in enumerate(full) if not f]
    left -= sum(k for k, f in zip(counts[1:], full) if f)
    for i in free:
        assert counts[1 + i] == pytest.approx(left * raw[i] / sum(raw[j] for j in free), abs=1)


def test_uniform_gives_each_layer_its_share() -> None:
    assert budget.uniform([(10, 10), (3, 5)], 0.1) == [10, 2]
