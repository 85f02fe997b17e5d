"""The metrics as modules of `evaluate`."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from . import functions

FRAME = "uint8"  # each value of a frame
#: Metric -> type of a prediction and of a reference.
TYPES = {
    "token_retention": "string",
    "exact_match_by_family": "string",
    "sparsity": "int64",
    "video_quality": FRAME,
    "forgetting": "float64",
    "loss_rise": "float64",
}


def metric(name: str) -> Any:
    """The class that `evaluate.load` finds in a metric's folder; None where `evaluate` is not installed."""
    if find_spec("evaluate") is None:
        return None
    evaluate, datasets = import_module("evaluate"), import_module("datasets")
    function = getattr(functions, name)

    def info(self: Any) -> Any:
        one = datasets.Value(TYPES[name])
        if TYPES[name] == FRAME:
            one = datasets.Sequence(datasets.Sequence(datasets.Sequence(one)))
        features = datasets.Features({"predictions": one, "references": one})
        told = inspect.cleandoc(function.__doc__)
        return evaluate.MetricInfo(description=told, citation="", inputs_description=told, features=features)

    def compute(self: Any, predictions: Any, references: Any, **more: Any) -> dict[str, float]:
        found: dict[str, float] = function(predictions, references, **more)
        return found

    return type(name, (evaluate.Metric,), {"_info": info, "_compute": compute})
