"""A new sparse delta from others: their sum, TIES and DARE, as PEFT's `add_weighted_adapter` has them for LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hf_efficient.checks import check_choice, check_number
from hf_efficient.extras import extra
from hf_efficient.reading import is_number, shown

from .base_weight import BaseWeight
from .config import BiDSTConfig
from .layer import BiDSTLayer
from .targets import inside_wrapper, name_exactly

with extra("sparsity"):
    from peft.utils import ModulesToSaveWrapper
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, prune

KINDS = ("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties")
SIGNS = ("total", "frequency")


@dataclass(frozen=True)
class Recipe:
    """How deltas become one.

    Args:
        kind: one of `KINDS`. Prune each delta ("magnitude_prune", "ties": its smallest values; "dare_...": at random,
            the rest divided by `density`), then add them up, each times its weight ("...ties": only those whose sign
            is the elected one, divided by their number).
        weights: one for each delta.
        density: share of each delta's own values that stay, in (0, 1]; None with "linear".
        sign: "ties": elects the sign of the sum ("total") or of most deltas ("frequency").

    Raises:
        ValueError: a field is out of range.
    """

    kind: str
    weights: tuple[float, ...]
    density: float | None = None
    sign: str = "total"

    def __post_init__(self) -> None:
        check_choice("combination_type", self.kind, KINDS)
        check_choice("majority_sign_method", self.sign, SIGNS)
        if not all(is_number(weight) for weight in self.weights):
            raise ValueError(f"weights={shown(self.weights)} is out of range; expected numbers, one for each adapter.")
        if (self.kind == "linear") != (self.density is None):
            raise ValueError(
                f"density={shown(self.density)} with combination_type={self.kind!r}: expected a share in (0, 1] of "
                "each adapter's values that stay, and None with 'linear', which takes all."
            )
        if self.density is not None:
            check_number("density", self.density, 0, 1, "a share in (0, 1]", above=True)

    def combine(self, deltas: Sequence[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor]:
        """One delta from those of a layer; equal to the same rule on dense matrices, each pruned to its share.

        Args:
            deltas: indices (k_i,) integer, and values (k_i,), of each adapter; None where it does not have the layer.

        Returns:
            Indices (k,) int64, rising, where a delta stays, and values (k,) float32.
        """
        sparse = [(indices.long(), self._pruned(values.float())) for indices, values in filter(None, deltas)]
        union = torch.cat([indices for indices, _ in sparse]).unique()
        tasks = torch.zeros(len(deltas), len(union), device=union.device)
        rows = [row for row, delta in enumerate(deltas) if delta is not None]
        for row, (indices, values) in zip(rows, sparse, strict=True):
            tasks[row, torch.searchsorted(union, indices)] = values
        weighted = tasks * torch.tensor(self.weights, device=union.device)[:, None]
        if self.kind.endswith("ties"):
            method = cast(Literal["total", "frequency"], self.sign)
            total = disjoint_merge(weighted, calculate_majority_sign_mask(tasks, method=method))
        else:
            total = weighted.sum(0)
        stay = tasks.any(0)
        if self.density is None or not bool(stay.any()):
            return union, total
        return union[stay], total[stay]

    def _pruned(self, values: Tensor) -> Tensor:
        if self.density is None or self.density == 1:
            return values
        random = self.kind.startswith("dare")
        return prune(values, self.density, "random" if random else "magnitude", rescale=random)


def add_weighted(tuner: Any, adapters: Sequence[str], recipe: Recipe, new: str) -> None:
    """Add a combined adapter to a `BiDSTModel`, inactive, with a fixed topology.

    Args:
        tuner: the model.
        adapters: names of those that are combined.
        recipe: how.
        new: name of the new one.

    Raises:
        ValueError: they cannot be combined.
    """
    model: nn.Module = tuner.model
    check_adapters(model, tuner.peft_config, adapters, new)
    if len(recipe.weights) != len(adapters):
        raise ValueError(f"weights has {len(recipe.weights)} numbers for {len(adapters)} adapters; expected one each.")
    with torch.no_grad():
        layers = combined_layers(model, adapters, recipe)
    total = sum(BaseWeight(layer.get_base_layer(), layer.parameter).numel for layer, _, _ in layers.values())
    first: BiDSTConfig = tuner.peft_config[adapters[0]]
    saved = {name for adapter in adapters for name in tuner.peft_config[adapter].modules_to_save or ()}
    config = BiDSTConfig(
        target="delta",
        topology="static",
        init="random",
        sparsity=1 - sum(len(indices) for _, indices, _ in layers.values()) / total,
        counts={key: len(indices) for key, (_, indices, _) in layers.items()},
        modules_to_save=sorted(saved) or None,
        task_type=first.task_type,
        base_model_name_or_path=first.base_model_name_or_path,
        inference_mode=first.inference_mode,
    )
    modules = {key: module for key, module in model.named_modules() if not inside_wrapper(key, model)}
    name_exactly(config, {re.sub(r"(\.base_layer)+$", "", key) for key in layers}, modules)
    tuner.peft_config[new] = config
    tuner.inject_adapter(model, new)
    for layer, indices, values in layers.values():
        layer.sparse_weight(new).select(indices, values)
    copy_saved_modules(model, adapters, new)


def check_adapters(model: nn.Module, configs: Mapping[str, Any], adapters: Sequence[str], new: str) -> None:
    """Refuse adapters that cannot be combined.

    Raises:
        ValueError: one does not exist, replaces weights, or has modules that another one has too; or `new` exists.
    """
    if new in configs:
        raise ValueError(f"adapter_name={new!r} exists already. Choose another name, or delete_adapter({new!r}) first.")
    if not adapters:
        raise ValueError("adapters is empty; expected names of adapters.")
    for name in adapters:
        if name not in configs:
            raise ValueError(f"adapters: there is no adapter {name!r}; expected some of {', '.join(configs)}.")
        if configs[name].target != "delta":
            raise ValueError(
                f"Adapter {name!r} has target='weight': it replaces the weights, and a sum of two such is no sparse "
                "model. Only adapters with target='delta' can be combined; of sparse models, merge_and_unload each and "
                "average what they become."
            )
    for key, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            owners = [name for name in adapters if name in module.modules_to_save]
            if len(owners) > 1:
                raise ValueError(
                    f"Adapters {', '.join(map(repr, owners))} each have trained {key!r} in full (modules_to_save), as "
                    "models of a task do with their heads; which one to take cannot be known. Combine adapters that "
                    "were trained without it, or with the same frozen head."
                )


def combined_layers(
    model: nn.Module, adapters: Sequence[str], recipe: Recipe
) -> dict[str, tuple[BiDSTLayer, Tensor, Tensor]]:
    """Name of a layer -> the layer, and indices and values of its combined delta."""
    found: dict[str, tuple[BiDSTLayer, Tensor, Tensor]] = {}
    for key, layer in model.named_modules():
        if not isinstance(layer, BiDSTLayer) or not any(name in layer.bidst_weight for name in adapters):
            continue
        weights = [layer.sparse_weight(name) if name in layer.bidst_weight else None for name in adapters]
        deltas = [None if weight is None else (weight.indices, weight.values.detach()) for weight in weights]
        found[key] = (layer, *recipe.combine(deltas))
    return found


def copy_saved_modules(model: nn.Module, adapters: Sequence[str], new: str) -> None:
    """Copy what the one adapter that has `modules_to_save` trained into those of the new one."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and new in module.modules_to_save:
            for owner in set(adapters) & set(module.modules_to_save):
                module.modules_to_save[new].load_state_dict(module.modules_to_save[owner].state_dict())
