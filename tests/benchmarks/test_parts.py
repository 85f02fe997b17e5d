"""Every part of ID-Pruner and ITG can be switched off and turned round, and what that costs is worked out rightly."""

import pytest
import torch

from benchmarks.harness.intervals import Bootstrap
from benchmarks.representation.grading import ModelGrades
from benchmarks.representation.parts import AS_IT_COMES, PARTS, compare, key_of, rows_of
from benchmarks.representation.protocol import CLASSES, OURS
from benchmarks.representation.turned import TURNED, add_turned, least, reverse
from hf_efficient import TokenPrunerConfig, reduce_tokens
from hf_efficient.methods import REPRESENTATION


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of methods with the turned ones, for one test."""
    monkeypatch.setattr(REPRESENTATION, "methods", REPRESENTATION.methods)
    add_turned()


@pytest.mark.parametrize("sizes", CLASSES.values())
@pytest.mark.parametrize("method", OURS)
def test_every_row_chooses_otherwise_than_the_method_as_it_comes(method: str, sizes: bool, turned: None) -> None:
    torch.manual_seed(0)
    features, importance = torch.randn(4, 200, 16), torch.rand(4, 200)
    made = {}
    for part, settings in rows_of(method, sizes).items():
        config = TokenPrunerConfig(**settings, budget=20)
        given = importance if config.importance_source in ("cls", "received") else None
        made[part] = reduce_tokens(features, config, given).tokens
    same = {part for part, tokens in made.items() if torch.equal(tokens, made[AS_IT_COMES])}
    default_centers = "initial centers: far apart" if sizes else "initial centers: coverage"
    expected = {AS_IT_COMES, "positions: the other", default_centers, *(() if sizes else ("floor: half",))}
    assert same == expected & set(PARTS[method])


def test_turned_methods_are_added_once(turned: None) -> None:
    before = REPRESENTATION.names
    add_turned()
    assert before == REPRESENTATION.names
    assert set(TURNED) < set(before)


def test_the_least_covering_tokens_are_those_of_the_smallest_sums() -> None:
    torch.manual_seed(1)
    x, p = torch.randn(1, 9, 4), torch.rand(1, 9)
    config = TokenPrunerConfig(coverage_mix=0.5, coverage_power=1.0)
    y = x[0] - x[0].mean(0)
    kernel = (1 + torch.nn.functional.cosine_similarity(y[:, None], y[None], dim=-1)) / 2
    weights = 0.5 * p[0] / p.sum() + 0.5 / 9
    sums = [sum(float(weights[i] * kernel[i, j]) for i in range(9)) for j in range(9)]
    expected = sorted(range(9), key=sums.__getitem__)
    valid = torch.ones(1, 9, dtype=torch.bool)
    assert least.choose(x, p, 4, config).order.tolist() == [expected[:4]]
    assert least.choose(x, p, 4, config, valid=valid).order.tolist() == [expected[:4]]


def test_reversed_importance_takes_the_least_important_first() -> None:
    p = torch.tensor([[0.1, 0.5, 0.0, 0.4]])
    config = TokenPrunerConfig(importance_weight=1.0, importance="cls")
    assert reverse.choose(torch.randn(1, 4, 3), p, 2, config).order.tolist() == [[2, 0]]


def test_a_part_is_compared_on_the_same_questions_by_budget_and_in_the_mean() -> None:
    better, worse = [[True, True], [True, False]], [[False, True], [False, False]]
    pruned = {}
    for part in PARTS["itg"]:
        pruned[key_of("with sizes", "itg", part), 0.5] = [worse if part == "steps: none" else better]
        pruned[key_of("with sizes", "itg", part), 0.1] = [better]
    rows = compare(ModelGrades(["m"], [], [], pruned), "itg", "with sizes", Bootstrap([2, 2]))
    off = next(row for row in rows if row["part"] == "steps: none")
    assert off["accuracy"] == {"0.5": 0.25, "0.1": 0.75}
    assert off["lead"]["0.5"] == {"ahead": -0.5, "interval": [-0.5, -0.5]}  # half of each scene, whichever is drawn
    assert off["lead"]["mean"] == {"ahead": -0.25, "interval": [-0.25, -0.25]}
    assert all(row["lead"]["mean"]["ahead"] == 0 for row in rows if row is not off)
