"""Initial centers of ITG that are important and far apart, and powers of importance in its weights."""

from typing import Any

import pytest
import torch

import hf_efficient
from hf_efficient import TokenPrunerConfig
from hf_efficient.representation.selection import id_pruner, itg
from tests.representation.units import SEEDS, LargestTensor, unit

# parts that not every method gives are there in what is tested here
reduce_tokens: Any = hf_efficient.reduce_tokens


def config(**settings: Any) -> TokenPrunerConfig:
    return TokenPrunerConfig(**{"method": "itg", "initial_centers": "farthest_first", "budget": 8, **settings})


def farthest_first_rule(x, p, k):
    """Token by token."""
    taken = [int(p.argmax())]
    while len(taken) < k:
        score = [float(p[i].sqrt() * min((x[i] - x[j]).double().square().sum() for j in taken)) for i in range(len(x))]
        taken.append(max((i for i in range(len(x)) if i not in taken), key=lambda i: score[i]))
    return taken


@pytest.mark.parametrize("seed", SEEDS)
def test_initial_centers_are_important_and_far_from_each_other(seed):
    x, p = unit(seed)
    assert itg.farthest_first(x[None], p[None], 8, config())[0].tolist() == farthest_first_rule(x, p, 8)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_all_tokens_have_in_common_and_their_scale_change_no_initial_center(seed):
    x, p = unit(seed)
    expected = farthest_first_rule(x, p, 8)
    assert itg.farthest_first(x[None] + 500, p[None], 8, config())[0].tolist() == expected
    assert itg.farthest_first(x[None] / 500, p[None], 8, config())[0].tolist() == expected


def test_they_are_distinct_where_all_tokens_are_alike_and_never_invalid():
    x, p = torch.ones(2, 30, 4), torch.ones(2, 30)
    valid = torch.arange(30).expand(2, -1) % 3 > 0
    order = itg.farthest_first(x, p, 20, config(), valid=valid)
    assert valid.gather(1, order).all()
    assert all(len(set(row)) == 20 for row in order.tolist())


def test_every_group_gets_its_quota():
    x, p = unit(0)
    p[20:] = 1e-4  # of the second frame nothing would be taken
    groups = torch.arange(40)[None] // 20
    free = itg.farthest_first(x[None], p[None], 8, config(), groups=groups)
    owed = itg.farthest_first(x[None], p[None], 8, config(coverage_mix=0.0, min_group_share=0.5), groups=groups)
    assert (free >= 20).sum() < 2
    assert (owed >= 20).sum() == 2  # floor(0.5 * 8 * 20 / 40)


@pytest.mark.parametrize("power", [0, 0.5, 2.0])
def test_means_are_weighted_by_the_power_of_importance(power):
    x, p = unit(1)
    made = reduce_tokens(x[None], config(importance_power=power, centroid_share=1.0), p[None])
    for k in range(8):
        members = (made.assignment[0] == k).nonzero()[:, 0]
        w = p[members] ** power
        mean = (w[:, None] * x[members]).sum(0) / w.sum()
        length = (w * x[members].norm(dim=1)).sum() / w.sum()
        torch.testing.assert_close(made.tokens[0, k], mean * length / mean.norm(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("power", [-1, "2", True, float("nan"), float("inf")])
def test_no_power_is_refused(power):
    with pytest.raises(ValueError, match="importance_power"):
        config(importance_power=power)


def test_unknown_initial_centers_are_refused():
    with pytest.raises(ValueError, match="'coverage', 'farthest_first'"):
        config(initial_centers="random")


@pytest.mark.parametrize(("initial_centers", "most"), [("coverage", 256), ("farthest_first", 40)])
def test_the_whole_method_takes_ten_thousand_tokens_without_a_matrix_of_all_pairs(initial_centers, most):
    x = torch.randn(1, 10_000, 16, generator=torch.Generator().manual_seed(0))
    with LargestTensor() as largest:
        made = reduce_tokens(x, config(initial_centers=initial_centers, budget=40))
    assert made.mass.sum() == 10_000
    assert largest.numbers <= 10_000 * most


@pytest.mark.parametrize("most", [2**26, 40**2, 40**2 - 1], ids=["all together", "one by one", "without a matrix"])
def test_initial_centers_do_not_depend_on_how_many_pairs_fit_into_memory(monkeypatch, most):
    monkeypatch.setattr(id_pruner, "MAX_STORED", most)
    rows = [unit(seed) for seed in SEEDS[:4]]
    x, p = (torch.stack(part) for part in zip(*rows, strict=True))
    groups, valid = torch.arange(40).expand(len(x), -1) // 20, torch.arange(40).expand(len(x), -1) % 5 > 0
    made = itg.farthest_first(x, p, 8, config(min_group_share=0.5), groups=groups, valid=valid)
    alone = [itg.farthest_first(x[i : i + 1], p[i : i + 1], 8, config(min_group_share=0.5), groups=groups[i : i + 1],
                        valid=valid[i : i + 1]) for i in range(len(x))]  # fmt: skip
    assert torch.equal(made, torch.cat(alone))
    assert itg.farthest_first(x, p, 8, config()).tolist() == [farthest_first_rule(*row, 8) for row in rows]
