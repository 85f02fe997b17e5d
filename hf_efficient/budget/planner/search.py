"""Find a plan that keeps limits: costs are predicted, plans that fit are tried, the best of them is returned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from hf_efficient.budget.measure import measure
from hf_efficient.budget.plan.efficiency_plan import EfficiencyPlan
from hf_efficient.budget.plan.pruning import BEFORE
from hf_efficient.budget.step import random_numbers_kept
from hf_efficient.checks import check_whole
from hf_efficient.modes import evaluating
from hf_efficient.quiet import errors_alone
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.evaluation.questions import on_device
from hf_efficient.representation.vlm.attach import token_pruner

from .asked import check_asked, quality_of
from .found import Candidate, FoundPlan
from .limits import OF_A_FORWARD, LimitError, Limits, amounts, broken, check_limits, costs_of, said
from .recipes import Recipes, TrainBatch
from .rows import calibration_batches, inputs_of_rows
from .tokens import TokenCosts, largest_unit, pace_of, stock_costs
from .weights import LEVERS, WeightLevers, Weights, file_bytes

Metric = Callable[[Any, Any, Sequence[Any]], float]
Inputs = Callable[[Any, Sequence[Any]], dict[str, Any]]


def find_plan(
    model: Any,
    processor: Any,
    data: Sequence[Any],
    metric: Metric,
    limit: Limits,
    *,
    inputs: Inputs = inputs_of_rows,
    methods: Sequence[str] = ("id_pruner", "itg", "scope"),
    levers: Sequence[str] = LEVERS,
    batch_size: int = 8,
    further: int = 2,
    repeats: int = 3,
    args: Any = None,
    train_batch: TrainBatch | None = None,
    recipes: Sequence[Mapping[str, Any]] | None = None,
    prune: str = BEFORE,
    progress: Callable[[str], object] | None = None,
) -> FoundPlan:
    """The best plan for a model that costs no more than it may.

    Costs are predicted: of visual tokens from three forwards of each method, of weights from their sizes. As they fall
    with fewer tokens, more zeros and fewer bits, bisection finds for each method what fits; these few plans are tried.
    Training is priced, by one measured step: the first recipe that fits is taken.

    Args:
        model: stock, on its device; it is as before afterwards. In evaluation mode meanwhile.
        processor: its processor or tokenizer; None where rows are tensors.
        data: rows on which plans are compared; keep others to test the one that is found.
        metric: of model, processor and rows, a number; larger is better, a plan with NaN the worst. The processor
            writes as many placeholders as tokens are kept: make prompts with it.
        limit: name of a cost (`COSTS`) -> the most it may be: a number, "40MB", "200ms", "50%" (of what it is now).
            Costs of a forward are those of the first `batch_size` rows.
        inputs: makes inputs of the model from processor and rows.
        methods: selections of visual tokens that are tried.
        levers: on the weights: "sparsegpt", "wanda"; "int8" (bitsandbytes, or torchao), "int4" (bitsandbytes).
        batch_size: rows of a forward.
        further: plans beside the best that show the trade-off: half of its tokens, a quarter, and so on.
        repeats: forwards timed for each measurement.
        args: `TrainingArguments`, where the plan is to be trained; limits of training need them.
        train_batch: a micro-batch with labels, or a function of the processor that makes one.
        recipes: parts of plans ("sam", "sparsity"), in the order in which they are wanted; None: `RECIPES`.
        prune: "before" or "after" the training, as of `PruningConfig.when`.
        progress: called with the name of each plan that is tried.

    Returns:
        The plan, its costs as predicted and as measured, and all that was tried.

    Raises:
        LimitError: no plan keeps the limits; `best` says what can be reached. It is a ValueError.
        ValueError: an argument is not as described, or the model has a pruner or adapter.
    """
    check_asked(model, data, metric, methods, levers, prune)
    check_limits(limit, args is not None)
    check_whole("batch_size", batch_size, 1)
    check_whole("further", further, 0)
    with evaluating(model), random_numbers_kept(model), errors_alone("bitsandbytes"):
        search = _Search(model, processor, data, metric, inputs, batch_size, repeats, progress)
        training = None if args is None else Recipes(model, processor, args, train_batch, recipes, search.calibration)
        return search.found(limit, methods, WeightLevers(model, levers, prune), further, training)


def the_best(fitting: Sequence[Candidate], limits: Mapping[str, float], stock: Mapping[str, float]) -> Candidate:
    """The plan of the highest quality; of equal ones the cheapest in what is limited."""
    cost = lambda one: sum(one.measured[n] / stock[n] for n in limits if n in one.measured and stock[n])  # noqa: E731
    return max(fitting, key=lambda one: (one.quality, -cost(one)))


class _Search:
    """What is known of a model while plans for it are looked for."""

    def __init__(
        self, model: Any, processor: Any, data: Any, metric: Metric, inputs: Inputs, batch_size: int, repeats: int,
        progress: Any,
    ) -> None:  # fmt: skip
        self.model, self.processor, self.data, self.metric = model, processor, data, metric
        self.inputs, self.repeats, self.progress = inputs, repeats, progress or (lambda name: None)
        rows = [data[i] for i in range(min(batch_size, len(data)))]
        self.batch = lambda: self.placed(rows)
        self.report = measure(model, self.batch(), repeats=repeats)
        self.stock = costs_of(self.report)
        self.pace = lambda: pace_of(model, self.batch(), self.stock["prefill_seconds"], repeats)
        self.progress("stock")
        self.quality = quality_of(metric, model, processor, data)
        if self.quality == -math.inf:
            raise ValueError("metric gives no finite number for the stock model, so that no plan can be compared.")
        self.lines: dict[str, TokenCosts] = {}
        self.best: dict[str, float] = {}  # name of a cost -> the least that was predicted or measured
        self.models: dict[str, Any] = {}  # at most one copy of the model
        self.weights: WeightLevers | None = None

    def found(
        self, limit: Limits, methods: Sequence[str], levers: WeightLevers, further: int, training: Recipes | None
    ) -> FoundPlan:
        """The search itself; arguments as of `find_plan`."""
        stock = self.stock | ({} if training is None else training.stock())
        limits = amounts(limit, stock)
        tried = list(self.tried_under(limits, methods, levers))
        if not (fitting := [one for one in tried if not broken(one.measured, limits)]):
            raise self.refused(limits)
        tried += self.further_than(the_best(fitting, limits, stock), limits, further)
        best = the_best([one for one in tried if not broken(one.measured, limits)], limits, stock)
        if best.quality == -math.inf:
            raise ValueError("metric gives no finite number for any plan that keeps the limits.")
        if training is not None:
            untrained, best = best, training.added(best, limits)
            tried = [best if one is untrained else one for one in tried]
        nothing = Candidate("stock", EfficiencyPlan(), self.quality, stock, stock)
        return FoundPlan(best, limits, nothing, tried)

    def calibration(self) -> list[dict[str, Any]]:
        """Batches that pruning of weights looks at."""
        return calibration_batches(self.data, self.placed)

    def placed(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Inputs where the model is, in its dtype."""
        made = self.inputs(self.processor, rows)
        return on_device(self.model, made) if hasattr(self.model, "device") else made

    def tried_under(
        self, limits: Mapping[str, float], methods: Sequence[str], levers: WeightLevers
    ) -> Iterator[Candidate]:
        """All plans that come into question, each tried."""
        self.weights = levers
        options = self.options(limits)
        if not options:
            self.best["file_bytes"] = levers.least_file()
            raise self.refused(limits)
        for weights in options:
            if fault := self.fault_of(weights):
                self.progress(f"{weights.name} is left out, for it does not run here: {fault}")
                continue
            density, slower = self.density(weights), self.slowness(weights, limits)
            whole = stock_costs(self.report, density, slower) | {"file_bytes": weights.file_bytes}
            self.remember(whole)
            if not broken(whole, limits):
                yield self.tried(weights, None, 0, whole, limits)
                continue
            for method in methods if self.report.representation.visual_tokens else ():
                line = self.line_of(method)
                budget = line.most_within(limits, density, slower)
                self.remember(line.at(1, density, slower))
                if budget:
                    yield self.fitted(weights, line, budget, density, slower, limits)

    def options(self, limits: Mapping[str, float]) -> list[Weights]:
        """The ways to treat the weights that may be tried."""
        assert self.weights is not None
        return self.weights.options(limits, lambda density: not broken(stock_costs(self.report, density), limits))

    def density(self, weights: Weights) -> dict[str, float]:
        """Name of a pruned layer -> share of its weight that stays."""
        assert self.weights is not None
        return {} if weights.sparsity is None else self.weights.density(weights.sparsity)

    def line_of(self, method: str) -> TokenCosts:
        """Costs under a selection method, predicted once."""
        if method not in self.lines:
            config = TokenPrunerConfig(method)
            most = largest_unit(self.model, self.processor, self.batch, config)
            self.lines[method] = TokenCosts(
                self.model, self.processor, self.batch, config, most, self.repeats, self.pace
            )
        return self.lines[method]

    def slowness(self, weights: Weights, limits: Mapping[str, float]) -> float:
        """Seconds of a forward with these weights, as a multiple of the stock ones; measured where bits change."""
        if weights.precision is None or "prefill_seconds" not in limits:
            return 1.0
        report = measure(self.with_weights(weights), self.batch(), repeats=self.repeats)
        return float(report.representation.prefill_seconds * self.pace() / self.stock["prefill_seconds"])

    def fault_of(self, weights: Weights) -> str:
        """Why a model of fewer bits does not run on this machine, or with layers of such sizes; "" where it does."""
        if weights.precision is None:
            return ""
        try:
            measure(self.with_weights(weights), self.batch(), repeats=1)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            return str(error) or type(error).__name__
        return ""

    def with_weights(self, weights: Weights) -> Any:
        """The model with its weights treated so; the last copy is kept."""
        assert self.weights is not None
        if weights.name not in self.models:
            self.models.clear()
            self.models[weights.name] = self.weights.applied(weights, self.calibration())
        return self.models[weights.name]

    def fitted(
        self, weights: Weights, line: TokenCosts, budget: int, density: Mapping[str, float], slower: float,
        limits: Mapping[str, float],
    ) -> Candidate:  # fmt: skip
        """The plan with the most tokens that keep the limits when measured, where that is fewer than was thought."""
        model, tightened = self.with_weights(weights), dict(limits)
        for _ in range(4):
            costs = costs_of(line.measured(model, budget))
            over = broken(costs | {"file_bytes": 0}, limits)
            if not over or budget == 1:
                break
            for name in over:
                tightened[name] *= limits[name] / costs[name]
            budget, costs = max(1, min(budget - 1, line.most_within(tightened, density, slower))), {}
        predicted = line.at(budget, density, slower) | {"file_bytes": weights.file_bytes}
        return self.tried(weights, line.with_budget(budget), line.most, predicted, limits, costs)

    def tried(
        self, weights: Weights, pruner: TokenPrunerConfig | None, most: int, predicted: Mapping[str, float],
        limits: Mapping[str, float], measured: Mapping[str, float] | None = None,
    ) -> Candidate:  # fmt: skip
        """A plan and its quality; its costs are measured unless they were already."""
        model = self.with_weights(weights)
        kept = "" if pruner is None else f"{pruner.method} {pruner.budget} of {most}"
        changed = "" if weights.pruning is None and weights.precision is None else weights.name
        name = ", ".join(part for part in (kept, changed) if part) or "as it is"
        self.progress(name)
        with nullcontext() if pruner is None else token_pruner(model, self.processor, pruner):
            costs = dict(measured or costs_of(measure(model, self.batch(), repeats=self.repeats)))
        if not measured:
            costs["prefill_seconds"] *= self.pace()
        with nullcontext() if pruner is None else token_pruner(model, self.processor, pruner):
            quality = quality_of(self.metric, model, self.processor, self.data)
        costs["file_bytes"] = file_bytes(model, weights)
        if weights.precision is not None and "prefill_seconds" not in limits:  # whose slowness was not measured
            predicted = {cost: value for cost, value in predicted.items() if cost != "prefill_seconds"}
        self.remember(costs)
        return Candidate(name, EfficiencyPlan(token_pruner=pruner, **weights.parts), quality, dict(predicted), costs)

    def further_than(self, best: Candidate, limits: Mapping[str, float], count: int) -> Iterator[Candidate]:
        """Plans like the best with half of its tokens, a quarter, and so on."""
        pruner = best.plan.token_pruner
        if pruner is None or self.weights is None:
            return
        weights = next(o for o in self.options(limits) if o.parts == {k: getattr(best.plan, k) for k in o.parts})
        line, density = self.line_of(pruner.method), self.density(weights)
        slower = self.slowness(weights, limits)
        budgets = [int(pruner.budget) >> i for i in range(1, count + 1)]
        for budget in [b for b in budgets if b]:
            predicted = line.at(budget, density, slower) | {"file_bytes": weights.file_bytes}
            yield self.tried(weights, line.with_budget(budget), line.most, predicted, limits)

    def remember(self, costs: Mapping[str, float]) -> None:
        """Keep the least of every cost."""
        for name, value in costs.items():
            self.best[name] = min(value, self.best.get(name, math.inf))

    def refused(self, limits: Mapping[str, float]) -> LimitError:
        """The error of limits that no plan keeps: the best that can be reached of each, and what takes it."""
        over = [name for name in limits if self.best.get(name, self.stock.get(name, 0)) > limits[name]]
        reached = {name: self.best.get(name, self.stock.get(name, 0)) for name in over or limits}
        lines = [f"{n}: {said(n, limits[n])} is asked for, {said(n, v)} can be reached" for n, v in reached.items()]
        binds = self.binding(over) if over else "each can be met alone, but not all together"
        return LimitError(f"No plan keeps the limit: {'; '.join(lines)}. What binds: {binds}.", reached)

    def binding(self, over: Sequence[str]) -> str:
        """What no lever here changes."""
        parts = []
        if "file_bytes" in over and self.weights is not None:
            rest = self.weights.unchanged_bytes()
            parts.append(f"weights that no lever changes (embeddings, heads, norms) take {said('file_bytes', rest)}")
        if set(over) & set(OF_A_FORWARD):
            if self.report.representation.visual_tokens:
                parts.append("the encoder of pictures and the text of the prompt stay, with one visual token each")
            else:
                parts.append("the prompt has no visual tokens, and no other lever makes a forward cheaper")
        return "; ".join(parts)
