"""Selection against brute force, against plain greedy, and against everything that must not change it."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.selection import id_pruner
from hf_efficient.representation.selection.uniform import grid_points
from tests.representation.methods import SELECTORS as METHODS
from tests.representation.objective import objective_of, unit
from tests.representation.units import LargestTensor

SETTINGS = [
    {"importance_weight": 0.1, "coverage_mix": 0.5, "kernel": "rbf"},
    {"importance_weight": 0.0, "coverage_mix": 0.0, "kernel": "rbf"},
    {"importance_weight": 0.5, "coverage_mix": 1.0, "kernel": "rbf"},
    {"importance_weight": 0.1, "coverage_mix": 0.5, "kernel": "cosine"},
    {"importance_weight": 1.0, "coverage_mix": 0.5, "kernel": "rbf"},
]


# --- the objective and its maximiser


@pytest.mark.parametrize("setting", SETTINGS)
def test_objective_reached_is_close_to_the_optimum_of_all_subsets(setting: dict) -> None:
    config = TokenPrunerConfig(budget=4, **setting)
    ratios = []
    for seed in range(60):
        x, p = unit(seed, 12)
        f = objective_of(x, p, 4, config)
        ratios.append(f(id_pruner.select(x, p, 4, config)[0].tolist()) / f.best())
    assert max(ratios) <= 1 + 1e-9
    assert sum(ratios) / len(ratios) >= 0.95
    assert min(ratios) >= 1 - 1 / math.e


def test_objective_with_quotas_is_close_to_the_optimum_of_all_subsets_that_meet_them() -> None:
    config = TokenPrunerConfig(budget=4, min_group_share=1.0)
    ratios = []
    for seed in range(60):
        x, p = unit(seed, 12)
        groups = torch.randint(0, 3, (1, 12), generator=torch.Generator().manual_seed(seed))
        f = objective_of(x, p, 4, config)
        weights = 0.5 * p[0] / p[0].sum() + 0.5 / 12  # whatever the power of the choice
        owed = [math.floor(4 * float(weights[groups[0] == g].sum()) + 1e-4) for g in range(3)]
        owed = [min(least, int((groups == g).sum())) for g, least in enumerate(owed)]

        def meets(chosen: list[int] | tuple[int, ...], groups: Tensor = groups, owed: list[int] = owed) -> bool:
            return all(int((groups[0, list(chosen)] == g).sum()) >= least for g, least in enumerate(owed))

        chosen = id_pruner.select(x, p, 4, config, groups=groups)[0].tolist()
        assert meets(chosen)
        ratios.append(f(chosen) / f.best([s for s in combinations(range(12), 4) if meets(s)]))
    assert max(ratios) <= 1 + 1e-9
    assert sum(ratios) / len(ratios) >= 0.95
    assert min(ratios) >= 1 / 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_objective_is_normalised_monotone_and_submodular(setting: dict) -> None:
    config = TokenPrunerConfig(budget=5, **setting)
    for seed in range(20):
        x, p = unit(seed, 12)
        f = objective_of(x, p, 5, config)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
        small, large, extra = order[:3], order[:7], order[8]
        assert f([]) == 0
        assert f(list(range(12))) >= f(large) >= f(small) - 1e-12
        assert f([*small, extra]) - f(small) >= f([*large, extra]) - f(large) - 1e-12  # gains fall as S grows
        top = p[0].topk(5).indices.tolist()
        assert 0 <= f(top) <= 1 + 1e-12


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("n", "k"), [(12, 4), (40, 40), (150, 20), (150, 1)])
def test_order_is_that_of_plain_greedy(setting: dict, n: int, k: int) -> None:
    config = TokenPrunerConfig(budget=k, **setting)
    for seed in range(3):
        x, p = unit(seed, n)
        order, f = id_pruner.select(x, p, k, config)[0].tolist(), objective_of(x, p, k, config)
        if config.coverage_mix != 0:
            assert order == f.greedy()
        for step in range(k):  # without weights, two tokens nearest to each other gain the same: either will do
            values = f.values(order[:step])
            assert values[order[step]] >= max(values) - 1e-6


def test_weight_one_is_top_importance_and_the_first_j_of_k_are_the_choice_for_j() -> None:
    x, p = unit(0, 100)
    plain = METHODS["top_importance"](x, p, 30, TokenPrunerConfig())
    assert torch.equal(id_pruner.select(x, p, 30, TokenPrunerConfig(importance_weight=1.0)), plain)
    for method in ("top_importance", "random", "divprune"):
        order = METHODS[method](x, p, 30, TokenPrunerConfig())
        assert torch.equal(METHODS[method](x, p, 7, TokenPrunerConfig()), order[:, :7])
    cover = TokenPrunerConfig(importance_weight=0.0)  # else the normalisation of importance depends on k
    assert torch.equal(id_pruner.select(x, p, 7, cover), id_pruner.select(x, p, 30, cover)[:, :7])


# --- quotas


def test_quotas_are_met_exactly_and_the_rest_is_free() -> None:
    config = TokenPrunerConfig(min_group_share=1.0, coverage_mix=0.0, importance_weight=0.0)
    x = torch.randn(1, 100, 8, generator=torch.Generator().manual_seed(0))
    x[:, 10:] *= 0.01  # all of the variety is in the first tenth
    groups = torch.arange(100) // 25
    chosen = id_pruner.select(x, torch.ones(1, 100), 20, config, groups=groups[None])
    assert torch.bincount(groups[chosen[0]]).tolist() == [5, 5, 5, 5]
    half = TokenPrunerConfig(min_group_share=0.5, coverage_mix=0.0, importance_weight=0.0)
    chosen = id_pruner.select(x, torch.ones(1, 100), 20, half, groups=groups[None])
    counts = torch.bincount(groups[chosen[0]], minlength=4).tolist()
    assert min(counts) >= 2  # floor(0.5 * 20 / 4)
    assert counts[0] > 5
    free = id_pruner.select(x, torch.ones(1, 100), 20, TokenPrunerConfig(coverage_mix=0.0), groups=groups[None])
    assert torch.equal(free, id_pruner.select(x, torch.ones(1, 100), 20, TokenPrunerConfig(coverage_mix=0.0)))


def test_quota_owes_no_more_than_a_group_has() -> None:
    config = TokenPrunerConfig(min_group_share=1.0, coverage_mix=1.0)
    x, _ = unit(0, 30)
    p = torch.full((1, 30), 1e-3)
    p[0, :2] = 100.0  # two tokens hold all of the mass
    groups = torch.tensor([[0, 0] + [1] * 28])
    chosen = id_pruner.select(x, p, 10, config, groups=groups)[0]
    assert {0, 1} <= set(chosen.tolist())
    assert len(set(chosen.tolist())) == 10
    valid = torch.ones(1, 30, dtype=torch.bool)
    valid[0, 0] = False
    chosen = id_pruner.select(x, p, 10, config, groups=groups, valid=valid)[0]
    assert 0 not in chosen
    assert 1 in chosen


# --- what every method must hold


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (12, 12), (49, 1), (50, 17), (144, 14)])
def test_k_distinct_tokens_and_the_same_again(method: str, n: int, k: int) -> None:
    x, p = unit(3, n)
    order = METHODS[method](x, p, k, TokenPrunerConfig())
    assert order.shape == (1, k)
    assert order.dtype == torch.long
    assert len(set(order[0].tolist())) == k
    assert 0 <= int(order.min()) <= int(order.max()) < n
    assert torch.equal(order, METHODS[method](x.clone(), p.clone(), k, TokenPrunerConfig()))


@pytest.mark.parametrize("method", METHODS)
def test_a_unit_is_chosen_from_alike_in_any_batch(method: str) -> None:
    units = [unit(seed, 130, 33) for seed in range(6)]
    x, p = torch.cat([u[0] for u in units]), torch.cat([u[1] for u in units])
    held = 0.5 if method in REPRESENTATION.readers("min_group_share") else 0.0
    config = TokenPrunerConfig(method=method, min_group_share=held)
    groups = (torch.arange(130) // 50).expand(6, -1)
    together = METHODS[method](x, p, 21, config, groups=groups)
    for row, (one, importance) in enumerate(units):
        assert torch.equal(together[row], METHODS[method](one, importance, 21, config, groups=groups[:1])[0])
    x[1:], p[1:] = 1e6, 0.0
    assert torch.equal(METHODS[method](x, p, 21, config, groups=groups)[0], together[0])


@pytest.mark.parametrize("method", METHODS)
def test_invalid_tokens_are_never_chosen_and_change_nothing(method: str) -> None:
    x, p = unit(0, 80)
    noise, weight = 50 * torch.randn(1, 20, 6), 10 * torch.ones(1, 20)
    valid = torch.tensor([[True, True, True, True, False] * 20])
    padded, weights = torch.empty(1, 100, 6), torch.empty(1, 100)
    padded[valid], padded[~valid], weights[valid], weights[~valid] = x[0], noise[0], p[0], weight[0]
    chosen = METHODS[method](padded, weights, 15, TokenPrunerConfig(), valid=valid)
    assert valid.gather(1, chosen).all()
    if method not in ("random", "uniform"):  # these look at places, not at tokens
        places = valid[0].nonzero()[:, 0]
        assert torch.equal(places[METHODS[method](x, p, 15, TokenPrunerConfig())], chosen)
    every = METHODS[method](padded, weights, 80, TokenPrunerConfig(), valid=valid)
    assert sorted(every[0].tolist()) == places_of(valid)


def places_of(mask: Tensor) -> list[int]:
    return [int(i) for i in mask[0].nonzero()[:, 0]]


@pytest.mark.parametrize("method", ["id_pruner", "top_importance", "divprune"])
def test_equal_tokens_are_taken_by_rising_index(method: str) -> None:
    same = torch.full((1, 90, 16), 0.3)
    assert METHODS[method](same, torch.ones(1, 90), 8, TokenPrunerConfig())[0].tolist() == list(range(8))
    zero = torch.zeros(1, 90, 16)
    assert METHODS[method](zero, torch.zeros(1, 90), 8, TokenPrunerConfig())[0].tolist() == list(range(8))


@pytest.mark.parametrize("kind", ["rbf", "cosine"])
def test_of_duplicates_one_each_is_taken_before_any_second_and_always_the_first(kind: str) -> None:
    distinct = torch.randn(1, 10, 24, generator=torch.Generator().manual_seed(0))
    x = distinct.repeat(1, 13, 1)  # token i equals i + 10, i + 20, ...
    config = TokenPrunerConfig(importance_weight=0.0, coverage_mix=0.0, kernel=kind)
    order = id_pruner.select(x, torch.ones(1, 130), 14, config)[0].tolist()
    assert sorted(order[:10]) == list(range(10))
    assert order[10:] == [10, 11, 12, 13]  # nothing left to gain: by index


@pytest.mark.parametrize("method", METHODS)
def test_features_that_need_gradients_can_be_chosen_from(method: str) -> None:
    x, p = unit(0, 50)
    order = METHODS[method](x, p, 10, TokenPrunerConfig())
    assert torch.equal(METHODS[method](x.requires_grad_(), p.requires_grad_(), 10, TokenPrunerConfig()), order)


def test_random_leaves_the_global_generator_alone() -> None:
    x, p = unit(0, 50)
    before = torch.get_rng_state()
    METHODS["random"](x, p, 10, TokenPrunerConfig())
    assert torch.equal(before, torch.get_rng_state())


def test_divprune_is_farthest_point_on_cosine_distance() -> None:
    x, p = unit(0, 40)
    distance = 1 - torch.nn.functional.cosine_similarity(x[0][:, None].double(), x[0][None].double(), dim=-1)
    nearest = (distance + 9 * torch.eye(40)).amin(1)
    chosen = [int(nearest.argmax())]
    while len(chosen) < 12:
        far = distance[:, chosen].amin(1)
        far[chosen] = -1
        chosen.append(int(far.argmax()))
    assert METHODS["divprune"](x, p, 12, TokenPrunerConfig())[0].tolist() == chosen


def test_uniform_spreads_over_rows_and_columns() -> None:
    assert grid_points(4, 4, 4) == [5, 7, 13, 15]
    assert grid_points(2, 8, 4) == [9, 11, 13, 15]  # one line: what is between is then as wide as high
    for rows, columns, k in [(12, 12, 14), (24, 24, 64), (7, 7, 49), (3, 20, 12), (20, 3, 12), (5, 5, 7), (2, 9, 10)]:
        points = grid_points(rows, columns, k)
        assert len(set(points)) == k
        assert points == sorted(points)
        lines = torch.bincount(torch.tensor(points) // columns)
        used = lines[lines > 0]
        assert int(used.max() - used.min()) <= 1
    x, p = unit(0, 50)  # not a square: evenly over the sequence
    steps = METHODS["uniform"](x, p, 10, TokenPrunerConfig())[0].diff()
    assert steps.tolist() == [5] * 9
    valid = torch.ones(1, 50, dtype=torch.bool)
    valid[:, :29] = False  # 21 are left: the middles of three times seven
    assert METHODS["uniform"](x, p, 3, TokenPrunerConfig(), valid=valid)[0].tolist() == [29 + 3, 29 + 10, 29 + 17]


# --- memory


def test_ten_thousand_tokens_are_worked_off_without_a_matrix_of_all_pairs() -> None:
    x = torch.randn(1, 10_000, 16, generator=torch.Generator().manual_seed(0))
    with LargestTensor() as largest:
        order = id_pruner.select(x, torch.ones(1, 10_000), 40, TokenPrunerConfig())
    assert len(set(order[0].tolist())) == 40
    assert largest.numbers <= 10_000 * 256  # all pairs would be 10,000 * 10,000


def test_choice_does_not_depend_on_how_much_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    units = [unit(seed, 150) for seed in range(5)]
    x, p = torch.cat([u[0] for u in units]), torch.cat([u[1] for u in units])
    groups = (torch.arange(150) // 30).expand(5, -1)
    config = TokenPrunerConfig(min_group_share=0.8)
    stored = id_pruner.select(x, p, 20, config, groups=groups)
    monkeypatch.setattr(id_pruner, "MAX_STORED", 2 * 150**2)  # two units at a time
    assert torch.equal(id_pruner.select(x, p, 20, config, groups=groups), stored)
    monkeypatch.setattr(id_pruner, "MAX_STORED", 150**2 - 1)  # rows on demand
    assert torch.equal(id_pruner.select(x, p, 20, config, groups=groups), stored)
