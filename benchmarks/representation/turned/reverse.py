"""Both methods for which the least important token of a unit is the most important one."""

from typing import Any

from torch import Tensor

from hf_efficient.representation.maths.mixture import Mixture
from hf_efficient.representation.selection import Covered, id_pruner, itg


def reversed_importance(importance: Tensor) -> Tensor:
    """max p - p_i of importance (B, N)."""
    return importance.amax(1, keepdim=True) - importance


def choose(features: Tensor, importance: Tensor, k: int, config: Any, **more: Any) -> Covered:
    """As `id_pruner.choose`."""
    return id_pruner.choose(features, reversed_importance(importance), k, config, **more)


def generate(features: Tensor, importance: Tensor, k: int, config: Any, **more: Any) -> Mixture:
    """As `itg.generate`."""
    return itg.generate(features, reversed_importance(importance), k, config, **more)
