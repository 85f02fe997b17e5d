"""Levers that need training: recipes, priced by one measured step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_efficient.budget.measure import measure
from hf_efficient.budget.plan.efficiency_plan import EfficiencyPlan
from hf_efficient.budget.plan.pruning import BEFORE, PruningConfig
from hf_efficient.extras import extra
from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.reading import shown

from .found import Candidate
from .limits import OF_TRAINING, LimitError, broken, costs_of, said
from .weights import loaded_again

TrainBatch = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]
#: Part of a plan that keeps the zeros of a pruned model while it trains.
AS_PRUNED: Any = {"target": "weight", "distribution": "as_pruned", "topology": "static"}
#: On all linear layers: which of them else, PEFT knows of some models alone.
_DELTAS = [{"target": "delta", "sparsity": share, "target_modules": "all-linear"} for share in (0.98, 0.995, 0.999)]
EXCHANGES = 50  # of a training's masks
#: Parts of a plan, the most wanted first: flat minima by two passes, by one, plain; then adapters, ever smaller. Flat
#: minima gained nothing with adapters or sparse weights where it was measured; of three networks one bore
#: pruning by Wanda better after them (docs/budget.md).
RECIPES: tuple[dict[str, Any], ...] = (
    {"sam": SAMArguments("sam", rho=0.05)},
    {"sam": SAMArguments("s2sam", rho=0.05)},
    {},
    *({"sparsity": delta} for delta in _DELTAS),
)


class Recipes:
    """What training may be like.

    Args:
        model: stock; it is copied.
        processor: copied too.
        args: of the Trainer.
        batch: a micro-batch with labels, or a function of the processor that makes one.
        recipes: parts of plans, the most wanted first; None: `RECIPES`.
        calibration: batches for pruning of weights.
    """

    def __init__(
        self, model: Any, processor: Any, args: Any, batch: TrainBatch | None,
        recipes: Sequence[Mapping[str, Any]] | None, calibration: Callable[[], Any],
    ) -> None:  # fmt: skip
        if batch is None:
            raise ValueError("args is given without train_batch: pass a micro-batch with labels, or a function of the "
                             "processor that makes one.")  # fmt: skip
        self.model, self.processor, self.args, self.batch = model, processor, args, batch
        self.ours = recipes is None
        self.recipes = [dict(recipe) for recipe in (paced(args.max_steps) if recipes is None else recipes)]
        self.calibration = calibration
        if not self.recipes:
            raise ValueError("recipes is empty; expected one at least, such as {} for plain training.")
        for recipe in self.recipes:
            if unknown := [name for name in recipe if name not in ("sam", "sparsity")]:
                raise ValueError(f"recipes: {shown(unknown[0])} is no part of one; expected 'sam' and 'sparsity'.")
            EfficiencyPlan(**recipe)  # raises before any work

    def stock(self) -> dict[str, float]:
        """What plain training of all weights costs."""
        return self.costs(EfficiencyPlan())

    def costs(self, plan: EfficiencyPlan) -> dict[str, float]:
        """What a step of training under a plan costs, by measuring one on a copy of the model."""
        with extra("training"):
            from hf_efficient.budget.trainer import EfficientTrainer

        if pruned_first(plan) is None:
            plan = replace(plan, pruning=None)  # no part of a step
        model = self.model if plan.precision is None else loaded_again(self.model, plan.precision)
        batches = self.calibration() if plan.pruning is not None else None
        model, processor = plan.apply(copy.deepcopy(model), copy.deepcopy(self.processor), batches)
        trainer = EfficientTrainer(model, self.args, plan=plan, processing_class=processor)
        batch = self.batch(processor) if callable(self.batch) else self.batch
        found = costs_of(measure(trainer.model, dict(batch), trainer, repeats=2))
        return {name: found[name] for name in OF_TRAINING}

    def added(self, best: Candidate, limits: Mapping[str, float]) -> Candidate:
        """The plan with the first recipe that keeps the limits of training.

        Raises:
            LimitError: none does.
        """
        least: dict[str, float] = {}
        for recipe in self.recipes:
            if self.ours and pruned_first(best.plan) is not None and "sam" in recipe:
                continue  # nothing is gained: see `RECIPES`
            if (plan := under(best.plan, recipe)) is None:
                continue
            costs = self.costs(plan)
            if not broken(costs, limits):
                return replace(
                    best, name=f"{best.name}; trained: {named(plan)}", plan=plan, measured={**best.measured, **costs}
                )
            least = {name: min(cost, least.get(name, cost)) for name, cost in costs.items()}
        over = {name: least[name] for name in OF_TRAINING if name in limits and name in least}
        lines = [f"{n}: {said(n, limits[n])} is asked for, {said(n, v)} can be reached" for n, v in over.items()]
        raise LimitError(
            f"No recipe keeps the limit: {'; '.join(lines)}. What binds: weights and activations of the batch, which "
            "no recipe changes; take fewer rows a step (per_device_train_batch_size), or recompute activations "
            "(gradient_checkpointing).",
            over,
        )


def paced(steps: int) -> list[dict[str, Any]]:
    """`RECIPES` for so many steps, with an exchange of weights in each fiftieth of them; <= 0: as they are."""
    if steps <= 0:
        return list(RECIPES)
    pace = {"update_interval": max(1, steps // EXCHANGES)}
    return [recipe | ({"sparsity": recipe["sparsity"] | pace} if "sparsity" in recipe else {}) for recipe in RECIPES]


def under(plan: EfficiencyPlan, recipe: Mapping[str, Any]) -> EfficiencyPlan | None:
    """A plan with a recipe for its training; None where they cannot go together.

    Zeros of a pruned model stay zeros; quantized weights stay as they are, so that only an adapter can train.
    """
    parts = dict(recipe)
    if plan.precision is not None and parts.get("sparsity") is None:
        return None
    if plan.pruning is not None:
        if parts.get("sparsity") is not None:
            return None
        if pruned_first(plan) is not None:
            parts["sparsity"] = AS_PRUNED
    return replace(plan, **parts)


def pruned_first(plan: EfficiencyPlan) -> PruningConfig | None:
    """The pruning of a plan that comes before its training; None where there is none."""
    return plan.pruning if plan.pruning is not None and plan.pruning.when == BEFORE else None


def named(plan: EfficiencyPlan) -> str:
    """A recipe in a few words."""
    sam = "plain steps" if plan.sam is None else str(plan.sam.method)
    if plan.sparsity is None:
        return f"all weights, {sam}" + (", pruned then" if plan.pruning is not None else "")
    if plan.sparsity.target == "weight":
        return f"weights that are left, {sam}"
    return f"adapter of {1 - plan.sparsity.sparsity:.2g}, {sam}"
