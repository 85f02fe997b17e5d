"""The third budget: what a forward takes, and how many tokens pictures become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_efficient.budget.flops import Flops, count_flops
from hf_efficient.budget.memory import bytes_of, device_of
from hf_efficient.budget.parameters import Known, density
from hf_efficient.budget.report import RepresentationBudget
from hf_efficient.budget.timing import seconds_of
from hf_efficient.compat.transformers import cache_name
from hf_efficient.wrapped import pruner_below, unwrapped

PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def representation_budget(
    model: nn.Module, inputs: dict[str, Any], call: Callable[[], Any], repeats: int, known: Known
) -> tuple[RepresentationBudget, Flops, dict[str, int]]:
    """Measure a forward.

    Args:
        model: in evaluation mode, its gradients off.
        inputs: of the model.
        call: a forward of the model on them.
        repeats: forwards that are timed.
        known: as of `nonzero`.

    Returns:
        The budget, operations by module, and those of them with weights that are not zero.
    """
    outputs: list[Any] = []
    flops = count_flops(lambda: outputs.append(call()), model)
    shares = {name: density(model.get_submodule(name), known) for name in flops.own}
    useful = {name: round(count * shares[name]) for name, count in flops.own.items()}
    encoded, kept = visual_tokens(model, inputs)
    ids = inputs.get("input_ids")
    budget = RepresentationBudget(
        visual_tokens=encoded,
        kept_tokens=kept,
        prompt_tokens=0 if ids is None else ids.numel(),
        prefill_flops=flops.total,
        prefill_flops_nonzero=flops.total - sum(flops.own.values()) + sum(useful.values()),
        prefill_seconds=seconds_of(call, device_of(model), repeats),
        cache_bytes=cache_bytes(outputs[0]),
    )
    return budget, flops, useful


def visual_tokens(model: nn.Module, inputs: dict[str, Any]) -> tuple[int, int]:
    """Visual tokens that the encoder made in the latest call, and that stood in its prompt."""
    pruner, ids = pruner_below(model), inputs.get("input_ids")
    config = getattr(unwrapped(model), "config", None)
    marks = {getattr(config, name, None) for name in PLACEHOLDERS} - {None}
    there = 0 if ids is None else int(torch.isin(ids, torch.tensor(sorted(marks), device=ids.device)).sum())
    if pruner is None or not there:
        return there, there
    return sum(unit.num_tokens for unit in pruner.last), sum(len(unit.indices) for unit in pruner.last)


def cache_bytes(output: Any) -> int:
    """Bytes of the keys and values, and of recurrent states, that a model returns."""
    cache = output.get(cache_name()) if isinstance(output, dict) else None
    parts = (getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache"))  # of decoders
    caches = [part for part in (cache, *parts) if part is not None]
    layers = [layer for part in caches for layer in getattr(part, "layers", ())]
    return bytes_of(value for layer in layers for value in vars(layer).values() if isinstance(value, torch.Tensor))
