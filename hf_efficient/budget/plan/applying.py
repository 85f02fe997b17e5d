"""A plan put on a model and its processor, in place, and what a model already has of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from hf_efficient import checks
from hf_efficient.extras import extra
from hf_efficient.reading import shown
from hf_efficient.representation.vlm.attach import attach_token_pruner, detach_token_pruner
from hf_efficient.wrapped import pruner_below, unwrapped

from .parts import differing
from .precision import check_loaded
from .pruning import prune


def apply(plan: Any, model: Any, processor: Any, batches: Iterable[Any] | None = None) -> tuple[Any, Any]:
    """Prune weights, attach the pruner of tokens, make the sparse model, check the precision; what is there stays.

    Everything is checked before anything is changed; where the last part fails, the pruner of tokens is detached again.

    Args:
        plan: an `EfficiencyPlan`.
        model: a model of transformers, stock, or with parts of this plan.
        processor: its processor; None where the plan has no pruner, or the model has it already.
        batches: calibration data, where the plan prunes weights that the model still has.

    Returns:
        The model, a `PeftModel` where the plan has sparsity; and the processor.

    Raises:
        TypeError: it is not a model.
        ValueError: the model has something that the plan does not, or cannot have what the plan has.
    """
    checks.check_model(model, "one of transformers, loaded")
    has_adapter = check_model(plan, model)
    if plan.pruning is not None and not getattr(model, "peft_config", None):
        prune(unwrapped(model), plan.pruning, batches)
    before = pruner_below(model)
    if plan.token_pruner is not None and not (processor is None and before is not None):
        if processor is None:
            raise ValueError(
                f"The plan prunes visual tokens ({plan.token_pruner.method!r}), for which the processor is needed: "
                "apply(model, processor), or processing_class=processor of a Trainer."
            )
        attach_token_pruner(model, processor, plan.token_pruner)
    if plan.sparsity is not None and not has_adapter:
        try:
            model = _sparse(model, plan.sparsity)
        except BaseException:
            if plan.token_pruner is not None and before is None:
                detach_token_pruner(model, processor)
            raise
    return model, processor


def check_model(plan: Any, model: Any) -> bool:
    """Refuse a model with anything that the plan does not have, or has otherwise.

    Returns:
        Whether the model has the plan's sparse adapter.

    Raises:
        ValueError: what the model has, what the plan has, and what to do.
    """
    if plan.precision is not None:
        check_loaded(plan.precision, getattr(getattr(unwrapped(model), "config", None), "quantization_config", None))
    pruner = pruner_below(model)
    if pruner is not None and plan.token_pruner is None:
        raise ValueError(
            f"The model has a token pruner, {shown(pruner.config)}, and the plan has none. Put its config into the "
            "plan, or detach_token_pruner(model, processor)."
        )
    if pruner is not None and pruner.config != plan.token_pruner:
        raise ValueError(
            f"The model has another token pruner, {shown(pruner.config)}, than the plan, {shown(plan.token_pruner)}. "
            "Detach it (detach_token_pruner(model, processor)), or put its config into the plan."
        )
    adapters = dict(getattr(model, "peft_config", None) or {})
    sparse = {name: config for name, config in adapters.items() if is_sparse(config)}
    if plan.sparsity is None and sparse:
        raise ValueError(
            f"The model has the sparse adapter {next(iter(sparse))!r} and the plan has no sparsity. Put its config "
            "into the plan, or merge it: model.merge_and_unload()."
        )
    if plan.sparsity is not None and set(adapters) != set(sparse):
        other = next(name for name in adapters if name not in sparse)
        raise ValueError(
            f"The model has the adapter {other!r} ({type(adapters[other]).__name__}) beside what the plan's sparsity "
            "would add; one folder holds one adapter. Merge it first (model.merge_and_unload()), or plan no sparsity."
        )
    for name, config in sparse.items():
        if other := differing(plan.sparsity, config):
            raise ValueError(
                f"The model's sparse adapter {name!r} is another than planned: {'; '.join(other)}. Put its config into "
                "the plan, or start with the model without it."
            )
    return bool(sparse)


def is_sparse(config: Any) -> bool:
    """Whether an adapter's config is BiDST's."""
    return bool(getattr(config, "peft_type", None) == "BIDST")


def _sparse(model: nn.Module, config: Any) -> Any:
    with extra("sparsity"):
        from peft import get_peft_model

    return get_peft_model(model, copy.deepcopy(config))  # which fills in names and counts of this model
