"""What a plan is looked for with: refused before any work where none can be found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_efficient.budget.plan.pruning import AFTER, BEFORE
from hf_efficient.checks import check_choice
from hf_efficient.methods import REPRESENTATION
from hf_efficient.reading import shown
from hf_efficient.wrapped import pruner_below, unwrapped

from .weights import LEVERS


def check_asked(model: Any, data: Any, metric: Any, methods: Sequence[str], levers: Sequence[str], prune: str) -> None:
    """Refuse what no plan can be found for."""
    for name, value in (("methods", methods), ("levers", levers)):
        if isinstance(value, str):
            raise ValueError(f"{name}={value!r} is a text; expected a list of names: [{value!r}].")
    for name in methods:
        check_choice("methods", name, REPRESENTATION.names)
    for name in levers:
        check_choice("levers", name, LEVERS)
    check_choice("prune", prune, (BEFORE, AFTER))
    if not callable(metric):
        raise ValueError(f"metric={shown(metric)} is no function; expected one of model, processor and rows.")
    if isinstance(data, Mapping) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ValueError(f"data is a {type(data).__name__}; expected a sequence of rows, such as list(data).")
    if not len(data):
        raise ValueError("data has no rows; expected some on which plans are compared.")
    if pruner_below(model) is not None or getattr(model, "peft_config", None) or unwrapped(model) is not model:
        raise ValueError("The model has a pruner or an adapter, or is wrapped: plan for the stock model.")


def quality_of(metric: Any, model: Any, processor: Any, data: Any) -> float:
    """What a metric says of a model; NaN and infinity are the worst there is.

    Raises:
        ValueError: it says no number.
    """
    found = metric(model, processor, data)
    try:
        quality = float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"metric returned {shown(found)}; expected a number, the larger the better.") from error
    return quality if math.isfinite(quality) else -math.inf
