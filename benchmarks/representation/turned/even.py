"""ITG for which all tokens are equally important. (ID-Pruner's setting for that is `coverage_mix=0`.)"""

from typing import Any

from torch import Tensor

from hf_efficient.representation.maths.mixture import Mixture
from hf_efficient.representation.selection import itg


def generate(features: Tensor, importance: Tensor, k: int, config: Any, **more: Any) -> Mixture:
    """As `itg.generate`."""
    return itg.generate(features, importance.new_ones(importance.shape), k, config, **more)
