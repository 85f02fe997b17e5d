"""The classes that vLLM is given, by the names of its own: each is made when it is first asked for."""

from __future__ import annotations

from typing import Any

from hf_efficient.compat.vllm import register_processor, stock_class

from .families import ARCHITECTURES
from .model import PrunedModel
from .positions import PrunedPositions
from .processing import PrunedInfo, PrunedProcessing


def __getattr__(name: str) -> Any:
    """vLLM's class of this architecture, with pruning before it."""
    if name not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    served = ARCHITECTURES[name]
    stock = stock_class(served.module, served.stock or name)
    mixins = (PrunedModel, PrunedPositions) if served.family.mrope else (PrunedModel,)
    made: Any = type(name, (*mixins, stock), {"__module__": __name__, "served": served})
    register_processor(made, stock, PrunedProcessing, PrunedInfo)
    globals()[name] = made  # the same class from now on
    return made
