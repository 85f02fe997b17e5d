"""How many active weights each targeted layer has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hf_efficient.sparsity.pattern import Groups, NMPattern
from hf_efficient.sparsity.topology.distribution import erk, largest, uniform

from .base_weight import BaseWeight
from .config import BiDSTConfig
from .targets import weights_of

FEWEST_ZEROS = 0.01  # share of zeros below which a model is not taken for a pruned one


def pattern_groups(config: BiDSTConfig, targeted: Mapping[str, nn.Module]) -> dict[str, Groups]:
    """The groups of each weight that becomes sparse, by the names of `weights_of`; none without a pattern.

    Raises:
        ValueError: a layer has a number of inputs that groups do not fill.
    """
    if config.pattern is None:
        return {}
    weights = {key: weights_of(key, module) for key, module in targeted.items()}
    pattern = NMPattern.parse(config.pattern)
    pattern.check_inputs((key, w.shape[w.input_axis]) for key, each in weights.items() for w in each.values())
    found = {name: weight for each in weights.values() for name, weight in each.items()}
    return {name: Groups.along(pattern, weight.shape, weight.input_axis) for name, weight in found.items()}


def layer_budgets(
    config: BiDSTConfig, weights: Mapping[str, BaseWeight], groups: Mapping[str, Groups]
) -> dict[str, int]:
    """The budget of each layer: name -> k active weights.

    Args:
        config: `sparsity`, `distribution` and `init` are read.
        weights: of all layers, from `weights_of`.
        groups: of all layers, from `pattern_groups`; where there are any, they say the budget.

    Raises:
        ValueError: a layer would have no weight, or has more weights that are not zero than its pattern allows.
    """
    if groups:
        if config.distribution == "as_pruned":
            for key, weight in weights.items():
                groups[key].check_zeros(weight.numbers(), key)
        return {key: each.active for key, each in groups.items()}
    density = 1 - config.sparsity
    if config.distribution == "as_pruned":
        return _as_pruned(weights)
    if config.distribution == "global" and config.resolved_init == "magnitude":
        counts = largest([weight.numbers() for weight in weights.values()], density)
    elif config.distribution == "erk":
        each = iter(erk([shape for weight in weights.values() for shape in weight.matrices], density))
        counts = [sum(next(each) for _ in weight.matrices) for weight in weights.values()]
    else:
        counts = uniform([tuple(weight.shape) for weight in weights.values()], density)
    for (key, weight), k in zip(weights.items(), counts, strict=True):
        if k < 1:
            denser = "" if config.distribution == "erk" else " use distribution='erk',"
            raise ValueError(
                f"sparsity={config.sparsity} leaves none of the {weight.numel} weights of {key!r} active. Lower it,"
                f"{denser} or leave the layer out with exclude_modules."
            )
    return dict(zip(weights, counts, strict=True))


def _as_pruned(weights: Mapping[str, BaseWeight]) -> dict[str, int]:
    """The weights of each layer that are not zero."""
    counts = {key: int(weight.tensor.count_nonzero()) for key, weight in weights.items()}
    total = sum(weight.numel for weight in weights.values())
    share = 1 - sum(counts.values()) / total
    if share < FEWEST_ZEROS:
        raise ValueError(
            f"distribution='as_pruned' keeps the zeros of a pruned model, and {share:.2%} of the {total} targeted "
            f"weights are zero, expected at least {FEWEST_ZEROS:.0%}. Load the pruned weights, prune the model "
            "(prune_wanda, prune_sparsegpt), or say the sparsity: sparsity=0.9 with another distribution."
        )
    for key, count in counts.items():
        if not count:
            raise ValueError(f"All weights of {key!r} are zero: leave the layer out, exclude_modules=[{key!r}].")
    return counts
