"""Plans under limits: predictions against measurements, bisection against trying everything, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from hf_efficient import (
    EfficiencyPlan,
    LimitError,
    PruningConfig,
    TokenPrunerConfig,
    find_plan,
    measure,
)
from hf_efficient.budget import forward
from hf_efficient.budget.planner import tokens
from hf_efficient.budget.planner.found import Candidate, FoundPlan
from hf_efficient.budget.planner.limits import amounts, broken, costs_of
from hf_efficient.budget.planner.tokens import TokenCosts, largest_unit
from hf_efficient.budget.planner.weights import WeightLevers, file_bytes
from hf_efficient.wrapped import pruner_below
from tests.budget.plans import TEXT, llama, logits, text_inputs
from tests.tiny import prompts, stock

ROWS = [{"picture": i % 3} for i in range(8)]


def inputs(processor: Any, rows: Any) -> dict[str, torch.Tensor]:
    return dict(processor(**prompts("llava", [[row["picture"]] for row in rows])))


def kept(model: Any, processor: Any, rows: Any) -> float:
    """A metric whose best value is known: how many tokens and weights are left."""
    with torch.no_grad():
        model(**inputs(processor, rows))
    pruner = pruner_below(model)
    weights = sum(int(p.count_nonzero()) for p in model.parameters()) / sum(p.numel() for p in model.parameters())
    return weights + (1e3 if pruner is None else float(len(pruner.last[0].indices)))


@pytest.fixture(scope="module")
def line() -> TokenCosts:
    model, processor = stock("llava")
    batch, config = (lambda: inputs(processor, ROWS[:2])), TokenPrunerConfig("divprune")
    return TokenCosts(model, processor, batch, config, largest_unit(model, processor, batch, config), 1)


def test_costs_of_tokens_are_predicted_to_the_operation(line: TokenCosts) -> None:
    for budget in (1, 2, line.most // 2, line.most - 1):
        predicted, found = line.at(budget, {}), costs_of(line.measured(line.model, budget))
        for name in ("prefill_flops", "prefill_flops_nonzero", "cache_bytes"):
            assert predicted[name] == pytest.approx(found[name], rel=0.01), (budget, name)


def test_seconds_that_follow_the_work_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = stock("llava")

    def clock(run: Any, device: Any, repeats: int) -> float:
        return 0.01 + 1e-9 * forward.count_flops(run, model).total

    monkeypatch.setattr(forward, "seconds_of", clock)
    batch = lambda: inputs(processor, ROWS[:2])
    line = TokenCosts(model, processor, batch, TokenPrunerConfig("divprune"), 16, 1)
    for budget in (1, 5, 15):
        found = costs_of(line.measured(model, budget))["prefill_seconds"]
        assert line.at(budget, {})["prefill_seconds"] == pytest.approx(found, rel=0.2)


def test_a_machine_that_is_slower_for_a_while_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = stock("llava")
    calls = [0]

    def clock(run: Any, device: Any, repeats: int) -> float:
        calls[0] += 1  # the first is of the stock model; then each measurement, and the stock model beside it
        slower = 1 + calls[0] // 2 % 3
        return slower * (0.01 + 1e-9 * forward.count_flops(run, model).total)

    monkeypatch.setattr(forward, "seconds_of", clock)
    monkeypatch.setattr(tokens, "seconds_of", clock)
    found = find_plan(model, processor, ROWS, kept, {"prefill_flops": "80%"}, inputs=inputs, methods=["divprune"],
                      batch_size=2, levers=[], further=2, repeats=1)  # fmt: skip
    assert calls[0] > 8
    for one in found.tried:
        assert one.predicted["prefill_seconds"] == pytest.approx(one.measured["prefill_seconds"], rel=0.05)


def test_bisection_finds_what_trying_every_budget_finds(line: TokenCosts) -> None:
    low, high = line.at(1, {}), line.at(line.most, {})
    for share in (0.01, 0.3, 0.77):
        limits = {n: low[n] + share * (high[n] - low[n]) for n in ("prefill_flops", "cache_bytes")}
        fitting = [b for b in range(1, line.most) if not broken(line.at(b, {}), limits)]
        assert line.most_within(limits, {}) == max(fitting, default=0)


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
@pytest.mark.parametrize("sparsity", [0.4, 0.9])
def test_bytes_of_a_pruned_file_are_predicted(method: str, sparsity: float, tmp_path: Path) -> None:
    model = llama()
    levers = WeightLevers(model, [method])
    weights = levers.pruned(method, sparsity)
    pruned = levers.applied(weights, [text_inputs(None, TEXT)])
    plan = EfficiencyPlan(pruning=weights.pruning)
    plan.save_pretrained(tmp_path, pruned)
    written = (tmp_path / "model.sparse.safetensors").stat().st_size
    assert file_bytes(pruned, weights) == pytest.approx(weights.file_bytes, rel=0.1)
    assert written == pytest.approx(weights.file_bytes, rel=0.1, abs=10_000)  # the header
    again, _ = EfficiencyPlan.load(tmp_path)
    ids = TEXT[0]["ids"][None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, pruned(ids).logits)
        assert not torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_bytes_and_operations_with_fewer_bits_are_predicted(name: str) -> None:
    model = llama(128)
    levers = WeightLevers(model, [name])
    again = measure(levers.applied(levers.quantized(name), []), text_inputs(None, TEXT[:1]), repeats=1)
    # a forward may round the scales of 4 bits
    assert levers.quantized(name).file_bytes == pytest.approx(again.parameters.file_bytes, rel=0.05)
    before = measure(model, text_inputs(None, TEXT[:1]), repeats=1)
    assert again.representation.prefill_flops == before.representation.prefill_flops


def test_the_fewest_zeros_that_fit_a_file() -> None:
    levers = WeightLevers(llama(), ["wanda"])
    for room in (0.35, 0.6, 0.95):
        found = levers.least_sparsity(room * levers.stock.file_bytes)
        assert found is not None
        assert levers.file_with(found) <= room * levers.stock.file_bytes < levers.file_with(found - 0.001)
    assert levers.least_sparsity(levers.stock.file_bytes) == 0
    assert levers.least_sparsity(10.0) is None


def test_the_plan_is_the_best_of_all_that_keep_the_limits() -> None:
    model, processor = stock("llava")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    limit = {"prefill_flops": "80%", "file_bytes": "70%"}
    found = find_plan(model, processor, ROWS, kept, limit, inputs=inputs, methods=["divprune", "scope"], batch_size=2,
                      levers=["wanda"], further=1, repeats=1)  # fmt: skip
    assert isinstance(found, FoundPlan)
    assert not broken(found.measured, found.limits)
    budget = found.plan.token_pruner.budget if found.plan.token_pruner else 0
    line = TokenCosts(model, processor, lambda: inputs(processor, ROWS[:2]), TokenPrunerConfig("divprune"), 16, 1)
    one_more = costs_of(line.measured(model, int(budget) + 1))
    assert one_more["prefill_flops"] > found.limits["prefill_flops"]
    for name in ("prefill_flops", "cache_bytes", "file_bytes"):
        assert found.predicted[name] == pytest.approx(found.measured[name], rel=0.1)
    assert found.quality == max(one.quality for one in found.tried if not broken(one.measured, found.limits))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert pruner_below(model) is None
    text = found.to_markdown()
    assert "| quality |" in text
    assert found.best.name in text
    applied, pruned_processor = found.plan.apply(*stock("llava"), batches=[inputs(processor, ROWS)])
    assert logits(applied, pruned_processor).isfinite().all()


def test_the_front_holds_what_nothing_beats(tmp_path: Path) -> None:
    def one(name: str, quality: float, cost: float) -> Candidate:
        return Candidate(name, EfficiencyPlan(), quality, {}, {"cache_bytes": cost})

    tried = [one("a", 0.5, 1), one("b", 0.4, 2), one("c", 0.9, 3), one("d", 0.9, 4)]
    found = FoundPlan(tried[2], {"cache_bytes": 3.0}, one("stock", 1.0, 9), tried)
    assert [c.name for c in found.front()] == ["a", "c", "stock"]
    found.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert found.to_dict()["best"]["name"] == "c"


def test_a_limit_that_cannot_be_met_says_what_can() -> None:
    model, processor = stock("llava")
    with pytest.raises(LimitError, match=r"prefill_flops: .* asked .* can be reached. What binds: the encoder") as e:
        find_plan(model, processor, ROWS, kept, {"prefill_flops": "1%"}, inputs=inputs, methods=["divprune"],
                  batch_size=2, repeats=1)  # fmt: skip
    line = TokenCosts(model, processor, lambda: inputs(processor, ROWS[:2]), TokenPrunerConfig("divprune"), 16, 1)
    assert e.value.best["prefill_flops"] == pytest.approx(line.at(1, {})["prefill_flops"], rel=0.01)
    with pytest.raises(LimitError, match=r"file_bytes: .* What binds: weights that no lever changes"):
        find_plan(llama(), None, TEXT, lambda *_: 0.0, {"file_bytes": 1000}, inputs=text_inputs, repeats=1)
    with pytest.raises(LimitError, match="no visual tokens"):
        find_plan(llama(), None, TEXT, lambda *_: 0.0, {"cache_bytes": "50%"}, inputs=text_inputs, repeats=1)


def test_limits_are_read() -> None:
    now = {"prefill_seconds": 0.4, "prefill_flops": 8e9, "file_bytes": 100.0}
    given = {"prefill_seconds": "200ms", "prefill_flops": "3 GFLOP", "file_bytes": "50%"}
    assert amounts(given, now) == {"prefill_seconds": 0.2, "prefill_flops": 3e9, "file_bytes": 50.0}
    assert amounts({"file_bytes": "1.5MB"}, now) == {"file_bytes": 1.5e6}
    for wrong in ({"file_bytes": "3s"}, {"file_bytes": "k%"}, {"file_bytes": -1}, {"prefill_seconds": "2MB"}, {}, None):
        with pytest.raises(ValueError, match="limit"):
            amounts(wrong, now)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not known"):
        amounts({"weight": 3}, now)
    with pytest.raises(ValueError, match="of training; pass what is trained"):
        amounts({"step_seconds": 3}, now)


def test_what_cannot_be_planned_is_refused() -> None:
    model, processor = stock("llava")
    with pytest.raises(ValueError, match="'oak' is not known"):
        find_plan(model, processor, ROWS, kept, {"cache_bytes": 1}, methods=["oak"])
    with pytest.raises(ValueError, match="no rows"):
        find_plan(model, processor, [], kept, {"cache_bytes": 1})
    with pytest.raises(ValueError, match="no inputs are known"):
        find_plan(model, processor, [{"picture": "a"}], kept, {"cache_bytes": 1})
    with pytest.raises(ValueError, match="pass a few batches"):
        EfficiencyPlan(pruning=PruningConfig("wanda", 0.5)).apply(llama())
    half = {"sparsity": 0.5}
    with pytest.raises(ValueError, match="cannot go together with precision"):
        EfficiencyPlan.from_dict({"pruning": half, "precision": {"quant_method": "bitsandbytes", "load_in_8bit": True}})
    with pytest.raises(ValueError, match="as_pruned"):
        EfficiencyPlan.from_dict({"pruning": half, "sparsity": {"sparsity": 0.9}})
    with pytest.raises(ValueError, match="fewer zeros"):
        EfficiencyPlan.from_dict({"pruning": half}).save_pretrained("nowhere", llama())


def test_the_model_is_in_evaluation_mode_meanwhile_and_random_numbers_are_as_before(tmp_path: Path) -> None:
    model = llama().train()
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, optim="adamw_torch", max_steps=3)
    batch = {**text_inputs(None, TEXT[:2]), "labels": text_inputs(None, TEXT[:2])["input_ids"]}
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = find_plan(model, None, TEXT, lambda model, *_: float(model.training), {"training_bytes": "300%"},
                      inputs=text_inputs, repeats=1, args=arguments, train_batch=batch, recipes=[{}])  # fmt: skip
    assert {one.quality for one in (found.stock, *found.tried)} == {0.0}
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plan_with_nan_is_never_the_best() -> None:
    answers = iter([0.5, float("nan"), 0.1])
    found = find_plan(llama(), None, TEXT, lambda *_: next(answers), {"file_bytes": "70%"}, inputs=text_inputs,
                      levers=["sparsegpt", "wanda"], repeats=1)  # fmt: skip
    assert found.quality == 0.1
    assert json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"data": (row for row in TEXT)}, "data is a generator; expected a sequence"),
        ({"data": ["a text"]}, "rows of type str"),
        ({"data": [{"ids": torch.ones(2)}, {"ids": torch.ones(3)}]}, "of shapes"),
        ({"metric": "accuracy"}, "is no function"),
        ({"metric": lambda *_: torch.ones(2)}, "metric returned a tensor"),
        ({"metric": lambda *_: float("nan")}, "no finite number for the stock model"),
        ({"methods": "itg"}, "expected a list of names"),
        ({"recipes": [], "args": 1, "train_batch": {}}, "recipes is empty"),
        ({"recipes": [{"sma": 1}], "args": 1, "train_batch": {}}, "recipes: 'sma' is no part"),
    ],
)
def test_odd_arguments_are_named(what: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"data": TEXT, "metric": lambda *_: 0.0, "limit": {"file_bytes": "90%"}, **what}
    if not (isinstance(given["data"], list) and given["data"] is not TEXT):
        given["inputs"] = text_inputs
    with pytest.raises(ValueError, match=message):
        find_plan(llama(), None, repeats=1, **given)


def test_a_wrong_limit_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="is not known"):
        find_plan(llama(), None, TEXT, lambda *_: pytest.fail("asked"), {"cache": 1}, inputs=text_inputs)
    with pytest.raises(ValueError, match="args= and train_batch="):
        find_plan(llama(), None, TEXT, lambda *_: pytest.fail("asked"), {"step_seconds": 1}, inputs=text_inputs)
    with pytest.raises(ValueError, match="cache_bytes is 0 of this model"):
        amounts({"cache_bytes": "50%"}, {"cache_bytes": 0.0})


def test_a_lever_that_does_not_run_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise AssertionError("N must be divisible by block_n")

    monkeypatch.setattr("hf_efficient.budget.planner.weights.loaded_again", fails)
    said: list[str] = []
    found = find_plan(llama(), None, TEXT, lambda *_: 0.0, {"file_bytes": "70%"}, inputs=text_inputs, repeats=1,
                      levers=["int4", "wanda"], progress=said.append)  # fmt: skip
    assert found.plan.pruning is not None
    assert any("int4 is left out" in line and "block_n" in line for line in said)
