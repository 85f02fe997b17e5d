"""The table of plans and single levers counts what is won, level and lost."""

import math
from statistics import stdev
from typing import Any

import pytest

from benchmarks.budget.tradeoff import PLAN, STOCK, over_seeds, table

ROWS = 40


def reached(**right: int) -> dict[str, Any]:
    """A cell in which each row answers its first so many questions rightly."""
    rows = {
        name: {"name": f"by {name}", "hits": [int(i < count) for i in range(ROWS)]} for name, count in right.items()
    }
    return {"rows": rows, "costs": [{"predicted": {"prefill_seconds": 1.1}, "measured": {"prefill_seconds": 1.0}}]}


@pytest.fixture(scope="module")
def told() -> str:
    cells = [
        ("prefill_flops=40%", 0, reached(plan=30, sparsegpt=10, wanda=20)),
        ("prefill_flops=40%", 1, reached(plan=30, sparsegpt=26)),
        ("prefill_flops=40%", 2, reached(plan=30, sparsegpt=24)),
        ("file_bytes=40%", 0, reached(plan=30, int8=30, int4=29)),
        ("file_bytes=40%", 1, reached(plan=10, int8=30)),
        ("both", 0, reached(plan=25)),
        ("none", 0, {"refused": "No plan keeps the limit"}),
    ]
    stock = {"hits": [1] * ROWS, "scenes": [str(i) for i in range(ROWS)]}
    rows: dict[str, Any] = {f"x|{seed}|{STOCK}": stock for seed in (0, 1, 2)}
    return table(rows | {f"x|{seed}|{limit}": {**cell} for limit, seed, cell in cells})


def test_cells_are_won_level_or_lost_by_their_interval(told: str) -> None:
    assert PLAN == "plan"
    line = next(line for line in told.splitlines() if line.startswith("The plan against"))
    assert line == (
        "The plan against the best lever alone, 7 cells: 3 won, 1 level, 1 lost, 1 no lever alone fits, 1 nothing fits."
    )
    assert "+25.0" in told  # the better of two levers is the rival
    assert "), wanda |" in told


def test_a_mean_over_seeds_has_students_interval(told: str) -> None:
    values = [25.0, 10.0, 15.0]
    half = 4.302653 * stdev(values) / math.sqrt(3)
    assert f"| prefill_flops=40% | 3 | +16.7 ± {half:.1f} |" in told
    assert "| file_bytes=40% | 2 |" not in told  # two seeds say nothing
    assert over_seeds([]) == ""


def test_errors_of_predictions_are_relative(told: str) -> None:
    assert "| prefill_seconds | 6 | 10.0% | 10.0% |" in told


def test_the_stock_model_stands_beside_the_plans(told: str) -> None:
    assert told.count("| 100.0 | stock |") == 3  # one a seed
