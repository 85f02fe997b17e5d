"""Exchanges against a slow pass written with the objective itself, and against the optimum of all subsets."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.maths.exchange import exchange
from hf_efficient.representation.maths.greedy import greedy_dense
from hf_efficient.representation.maths.importance import coverage_weights, shares
from hf_efficient.representation.selection import id_pruner
from tests.representation.objective import Objective, objective_of, unit

SETTINGS = [
    {"coverage_power": 1.0},
    {"importance_weight": 0.1, "kernel": "rbf"},
    {"coverage_mix": 0.9, "coverage_power": 3.0},
]


def groups_of(seed: int, n: int) -> Tensor:
    return torch.randint(0, 3, (1, n), generator=torch.Generator().manual_seed(seed))


def owed_by(f: Objective, groups: Tensor, rho: float) -> list[int]:
    return [
        min(math.floor(rho * f.k * float(f.pi[groups[0] == g].sum()) + 1e-4), int((groups == g).sum()))
        for g in range(3)
    ]


def meets(chosen: list[int], groups: Tensor, owed: list[int]) -> bool:
    return all(int((groups[0, chosen] == g).sum()) >= least for g, least in enumerate(owed))


def slow_pass(
    f: Objective, chosen: list[int], groups: Tensor | None = None, owed: list[int] | None = None
) -> list[int]:
    """Every place in turn: the best token there given all others, if it is better by more than rounding."""
    chosen = list(chosen)
    for t in range(len(chosen)):
        swaps = [[*chosen[:t], j, *chosen[t + 1 :]] for j in range(f.n) if j not in chosen]
        if groups is not None and owed is not None:
            swaps = [one for one in swaps if meets(one, groups, owed)]
        best = max(swaps, key=f, default=chosen)
        if f(best) > f(chosen) + 1e-9:
            chosen = best
    return chosen


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_a_pass_is_every_place_in_turn_and_only_raises_the_objective(setting: dict, rho: float) -> None:
    plain = TokenPrunerConfig(budget=6, min_group_share=rho, **setting)
    once = TokenPrunerConfig(budget=6, min_group_share=rho, exchange_passes=1, **setting)
    raised = 0
    for seed in range(15):
        x, p = unit(seed, 30)
        groups = groups_of(seed, 30) if rho else None
        f = objective_of(x, p, 6, plain)
        before = id_pruner.select(x, p, 6, plain, groups=groups)[0].tolist()
        after = id_pruner.select(x, p, 6, once, groups=groups)[0].tolist()
        mix, power = setting.get("coverage_mix", 0.5), setting.get("coverage_power", 1.0)
        quotas = Objective(x[0], p[0], 6, mix=mix, power=power)  # of coverage as it is without gamma's default
        owed = owed_by(quotas, groups, rho) if groups is not None else None
        assert sorted(after) == sorted(slow_pass(f, before, groups, owed))
        assert f(after) >= f(before) - 1e-7
        assert groups is None or meets(after, groups, owed or [])
        raised += f(after) > f(before) + 1e-6
    assert raised >= 2  # greedy alone leaves something to gain


@pytest.mark.parametrize("setting", SETTINGS)
def test_exchanges_bring_greedy_closer_to_the_optimum_of_all_subsets(setting: dict) -> None:
    ratios: dict[int, list[float]] = {0: [], 1: []}
    for passes, made in ratios.items():
        config = TokenPrunerConfig(budget=4, exchange_passes=passes, **setting)
        for seed in range(60):
            x, p = unit(seed, 12)
            f = objective_of(x, p, 4, config)
            made.append(f(id_pruner.select(x, p, 4, config)[0].tolist()) / f.best())
    assert sum(ratios[1]) > sum(ratios[0])
    assert all(one >= zero - 1e-7 for zero, one in zip(ratios[0], ratios[1], strict=True))
    assert 1 - 1 / math.e <= min(ratios[1]) <= max(ratios[1]) <= 1 + 1e-9


def test_exchanges_see_valid_tokens_alone_and_do_not_depend_on_the_batch_or_on_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, p = (torch.cat(parts) for parts in zip(*(unit(seed, 40) for seed in range(3)), strict=True))
    valid = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) > 0.3
    config = TokenPrunerConfig(exchange_passes=2, coverage_power=3.0)
    made = id_pruner.select(x, p, 8, config, valid=valid)
    assert valid.gather(1, made).all()
    for b in range(3):
        inner = valid[b].nonzero().squeeze(1)
        alone = id_pruner.select(x[b : b + 1, inner], p[b : b + 1, inner], 8, config)
        assert torch.equal(inner[alone[0]], made[b])
    monkeypatch.setattr(id_pruner, "MAX_STORED", 100)
    assert torch.equal(id_pruner.select(x, p, 8, config, valid=valid), made)


def every_pass(rows: Any, gains: Any, bonus: Tensor, order: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """All passes, whether or not they change anything; what the other tokens cover is found anew at every place."""
    order = order.clone()
    for _ in range(passes):
        for t in range(order.shape[1]):
            others = torch.cat([order[:, :t], order[:, t + 1 :]], dim=1)
            gain = (gains(rows(others).amax(1)) + bonus).scatter(1, others, -torch.inf)
            for b in range(len(order)):
                best = gain[b].argmax()
                if gain[b, best] > gain[b, order[b, t]]:
                    order[b, t] = best
    within, covered = greedy_dense(rows(order), bonus.gather(1, order), order.shape[1])
    return order.gather(1, within), covered


@pytest.mark.parametrize("passes", [1, 2, 3, 12])
def test_passes_end_with_one_that_changes_no_unit_and_nothing_else_changes(passes: int) -> None:
    generator = torch.Generator().manual_seed(7)
    matrix = torch.rand(6, 60, 60, generator=generator).pow(3)
    bonus = 0.1 * torch.rand(6, 60, generator=generator)
    order = torch.rand(6, 60, generator=generator).argsort(1)[:, :9]  # far from greedy: units need several passes
    looks = []

    def gains(covered: Tensor) -> Tensor:
        looks.append(covered)
        return id_pruner.row_gains(matrix, covered)

    made = exchange(id_pruner.row_taker(matrix), gains, bonus, order, passes)
    taken, looks[:] = len(looks) // 9, []
    expected = every_pass(id_pruner.row_taker(matrix), gains, bonus, order, passes)
    assert torch.equal(made[0], expected[0])
    assert torch.equal(made[1], expected[1])
    alone = [exchange(id_pruner.row_taker(matrix), gains, bonus, order, count)[0] for count in range(13)]
    needed = next(count for count in range(12) if torch.equal(alone[count], alone[count + 1]))
    assert 2 <= needed < 11
    assert taken == min(passes, needed + 1)


def test_a_token_stays_where_another_is_only_as_good() -> None:
    """Tokens 0 and 3 are one and the same; 3 was taken."""
    matrix = torch.tensor([[[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.5, 0.0], [0.0, 0.5, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]]])
    order = torch.tensor([[3, 1]])
    made, _ = exchange(
        id_pruner.row_taker(matrix), lambda c: id_pruner.row_gains(matrix, c), torch.zeros(1, 4), order, 2
    )
    assert sorted(made[0].tolist()) == [1, 3]


def test_the_first_tokens_after_exchanges_are_a_greedy_choice_among_them() -> None:
    x, p = unit(3, 40)
    config = TokenPrunerConfig(exchange_passes=1)
    order = id_pruner.select(x, p, 8, config)[0].tolist()
    f = objective_of(x, p, 8, config)
    for j in range(8):
        assert f(order[: j + 1]) >= max(f([*order[:j], other]) for other in order[j:]) - 1e-7


def test_coverage_is_that_of_the_tokens_after_exchanges() -> None:
    x, p = unit(5, 40)
    config = TokenPrunerConfig(exchange_passes=1, coverage_mix=0.9, coverage_power=3.0)
    made = id_pruner.choose(x, p, 8, config)
    assert made.coverage is not None
    torch.testing.assert_close(
        float(made.coverage), objective_of(x, p, 8, config)(made.order[0].tolist()), atol=1e-5, rtol=0
    )


def test_coverage_weights_are_their_formula() -> None:
    p = shares(torch.rand(2, 9, generator=torch.Generator().manual_seed(0)))
    valid = torch.arange(9).expand(2, -1) < 7
    inner = p[:, :7].double() ** 3
    expected = 0.8 * inner / inner.sum(1, keepdim=True) + 0.2 / 7
    made = coverage_weights(p * valid, 0.8, 3.0, valid)
    torch.testing.assert_close(made[:, :7], expected.float())
    assert not made[:, 7:].any()
