"""Recipes of training: which one is taken under a limit, and how often weights are exchanged."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_efficient import BiDSTConfig, LimitError, SAMArguments, find_plan
from hf_efficient.budget.planner.found import FoundPlan
from hf_efficient.budget.planner.recipes import RECIPES, paced
from tests.budget.plans import TEXT, llama, text_inputs


def test_the_first_recipe_that_fits_is_taken(tmp_path: Path) -> None:
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, optim="adamw_torch", max_steps=3)
    batch = {**text_inputs(None, TEXT[:2]), "labels": text_inputs(None, TEXT[:2])["input_ids"]}
    recipes: list[dict[str, Any]] = [
        {"sam": SAMArguments("sam", rho=0.1)},
        {"sparsity": {"target": "delta", "sparsity": 0.9}},
    ]

    def found(limit: dict[str, Any]) -> FoundPlan:
        return find_plan(llama(), None, TEXT, lambda *_: 0.0, limit, inputs=text_inputs, repeats=1, args=arguments,
                         train_batch=batch, recipes=recipes)  # fmt: skip

    free = found({"training_bytes": "300%"})
    assert free.plan.sam is not None
    costs = next(line for line in free.to_markdown().splitlines() if line.startswith("| weights, optimizer state"))
    assert all(cell.strip() for i, cell in enumerate(costs.split("|")[1:-1]) if i != 3), costs  # it is not predicted
    assert free.front()[-1].measured["training_bytes"] > 0
    free.plot(tmp_path / "front.png")
    with pytest.raises(ValueError, match="cost='weights'"):
        free.plot(tmp_path / "front.png", "weights")
    small = found({"training_bytes": 0.8 * free.measured["training_bytes"]})
    assert small.plan.sam is None
    assert small.plan.sparsity is not None
    assert small.plan.sparsity.sparsity == 0.9
    with pytest.raises(LimitError, match="No recipe keeps the limit: training_bytes"):
        found({"training_bytes": 1000})


def test_recipes_exchange_weights_within_the_steps_that_there_are() -> None:
    for steps in (3, 100, 5000):
        for recipe in paced(steps):
            if "sparsity" in recipe:
                interval = BiDSTConfig(**recipe["sparsity"]).update_interval
                assert interval == max(1, steps // 50)
    assert paced(-1) == list(RECIPES)  # trained by epochs


def test_default_recipes_leave_flat_minima_to_dense_training(tmp_path: Path) -> None:
    assert not [recipe for recipe in RECIPES if {"sam", "sparsity"} <= set(recipe)]
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, optim="adamw_torch", max_steps=3)
    batch = {**text_inputs(None, TEXT[:2]), "labels": text_inputs(None, TEXT[:2])["input_ids"]}
    found = find_plan(llama(), None, TEXT, lambda *_: 0.0, {"file_bytes": "70%"}, inputs=text_inputs, repeats=1,
                      levers=["wanda"], args=arguments, train_batch=batch)  # fmt: skip
    assert found.plan.pruning is not None
    assert found.plan.sam is None
    after = find_plan(llama(), None, TEXT, lambda *_: 0.0, {"file_bytes": "70%"}, inputs=text_inputs, repeats=1,
                      levers=["wanda"], args=arguments, train_batch=batch, prune="after")  # fmt: skip
    assert after.plan.pruning is not None
    assert after.plan.pruning.when == "after"
    assert after.plan.sparsity is None
    assert after.plan.sam is not None  # what is flat bears pruning
    assert after.best.name.endswith("trained: all weights, sam, pruned then")
    assert after.measured["training_bytes"] == pytest.approx(after.stock.measured["training_bytes"], rel=0.3)
    with pytest.raises(ValueError, match="prune='oak'"):
        find_plan(llama(), None, TEXT, lambda *_: 0.0, {"file_bytes": "70%"}, inputs=text_inputs, prune="oak")
