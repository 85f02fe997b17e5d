"""A plan carried out: trained, however often it is broken off, and saved."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_efficient.extras import extra
from hf_efficient.files.checkpoints import RECORD, has_whole, is_whole
from hf_efficient.modes import evaluating
from hf_efficient.representation.evaluation.questions import on_device
from hf_efficient.representation.vlm.attach import detach_token_pruner
from hf_efficient.wrapped import unwrapped

from .plan.efficiency_plan import EfficiencyPlan
from .plan.folder import check_free
from .plan.pruning import AFTER
from .planner.found import FoundPlan
from .planner.recipes import AS_PRUNED
from .trainer import EfficientTrainer

with extra("training"):
    from transformers import set_seed


def train_plan(
    plan: FoundPlan | EfficiencyPlan | dict[str, Any] | str | os.PathLike[str],
    model: Any,
    args: Any,
    folder: str | os.PathLike[str],
    processor: Any = None,
    batches: Iterable[Any] | None = None,
    **kwargs: Any,
) -> EfficientTrainer:
    """Train a model under a plan, and save plan and model into one folder.

    Call it again after a kill, with the same arguments: it goes on from the last whole checkpoint in `args.output_dir`,
    or starts anew where there is none, and ends bit for bit where it would have ended.

    Args:
        plan: what `find_plan` returned, or a plan, its values, or where it was saved.
        model: stock, loaded with the plan's precision if it has one.
        args: `TrainingArguments`; checkpoints as often as they say. The seed is set before the plan is applied.
        folder: where the plan is saved with the trained model; not `args.output_dir`.
        processor: the model's; it is changed in place where the plan has a token pruner.
        batches: inputs on which weights are pruned, where the plan says so.
        kwargs: of `EfficientTrainer`: `train_dataset`, `data_collator`, ...

    Returns:
        The Trainer, whose `model` is trained. Where the plan prunes weights, zeros stay zeros, or are put in after the
        training, as its `when` says; the folder holds the (merged) model, stored sparsely.

    Raises:
        ValueError: `folder` is `args.output_dir`, nothing of the plan trains, or as `EfficiencyPlan.apply`.
        FileExistsError: weights of another origin are in `folder`.
    """
    chosen = plan.plan if isinstance(plan, FoundPlan) else EfficiencyPlan.of(plan)
    if Path(folder).resolve() == Path(args.output_dir).resolve():
        raise ValueError(f"folder={os.fspath(folder)!r} holds the checkpoints (output_dir); name another one.")
    check_trains(chosen)
    check_free(folder, weights=chosen.sparsity is None and chosen.pruning is None)
    late = chosen.pruning is not None and chosen.pruning.when == AFTER
    if chosen.pruning is not None and not late and chosen.sparsity is None:
        chosen = replace(chosen, sparsity=AS_PRUNED)  # or its zeros would train away
    set_seed(args.seed)
    meanwhile = replace(chosen, pruning=None) if late else chosen
    caches = getattr(getattr(model, "config", None), "use_cache", None)
    model, processor = meanwhile.apply(model, processor, batches)
    trainer = EfficientTrainer(model, args, plan=meanwhile, processing_class=processor, **kwargs)
    done = finished(args)
    if done is None:
        trainer.train(resume_from_checkpoint=has_whole(args.output_dir))
    else:
        trainer.load_weights(done)
    trained = trainer.model
    if late:
        pruned_at_last(chosen, trained, processor, batches)
    if chosen.pruning is not None and chosen.sparsity is not None and chosen.sparsity.target == "weight":
        trained, chosen = trained.merge_and_unload(), replace(chosen, sparsity=None)
    if caches is not None:
        unwrapped(trained).config.use_cache = caches  # the Trainer turns it off, and would leave it so in the folder
    if trainer.is_world_process_zero():
        chosen.save_pretrained(folder, trained, processor)
    return trainer


def check_trains(plan: EfficiencyPlan) -> None:
    """Refuse a plan of which nothing trains."""
    if plan.precision is not None and plan.sparsity is None:
        raise ValueError(
            f"The plan has precision={plan.precision['quant_method']!r} and nothing that trains: quantized weights do "
            "not. Give it an adapter, sparsity={'target': 'delta', 'sparsity': 0.995}, or leave precision out."
        )


def pruned_at_last(plan: EfficiencyPlan, model: Any, processor: Any, batches: Iterable[Any] | None) -> None:
    """Prune a trained model in place, on batches that were made before it had a token pruner."""
    if plan.token_pruner is not None:
        detach_token_pruner(model, processor)
    placed = [on_device(model, batch) if isinstance(batch, dict) else batch for batch in batches or ()]
    with evaluating(model):
        plan.apply(model, processor, placed or None)


def finished(args: Any) -> str | None:
    """A whole checkpoint that has all steps, where there is one: the Trainer would go on from it, by one more step.

    Args:
        args: `TrainingArguments`.
    """
    if args.max_steps <= 0 or args.load_best_model_at_end:
        return None
    steps = {
        str(path): json.loads((path / RECORD).read_text(encoding="utf-8")).get("global_step", 0)
        for path in Path(args.output_dir).glob("checkpoint-*")
        if is_whole(path)
    }
    done = {path: step for path, step in steps.items() if step >= args.max_steps}
    return min(done, key=done.__getitem__, default=None)
