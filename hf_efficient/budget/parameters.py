"""The first budget: what a model's weights take, and which of them are zero."""

from __future__ import annotations

import sys
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient.budget.memory import bytes_of, tensors_in
from hf_efficient.budget.report import ParameterBudget
from hf_efficient.sparsity.csr.linear import CSRLinear
from hf_efficient.sparsity.sparse_weight import SparseWeight

Known = dict[int, int]  # id of a weight -> its entries that are not zero


def parameter_budget(
    model: nn.Module, weights: dict[str, tuple[int, int]], optimizer: torch.optim.Optimizer | None = None
) -> ParameterBudget:
    """Count parameters and bytes.

    Args:
        model: any module.
        weights: its `weights_by_module`.
        optimizer: whose state is counted.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    return ParameterBudget(
        total=sum(total for total, _ in weights.values()),
        nonzero=sum(there for _, there in weights.values()),
        trainable=sum(p.numel() for p in trainable),
        memory_bytes=bytes_of([*model.parameters(), *model.buffers()]),
        file_bytes=bytes_of(saved(model)),
        gradient_bytes=sum(p.numel() * p.element_size() for p in trainable),
        optimizer_bytes=None if optimizer is None else bytes_of(tensors_in(dict(optimizer.state))),
    )


def saved(model: nn.Module) -> list[Tensor]:
    """The tensors that `save_pretrained` writes: of a `PeftModel` those of its adapters."""
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(model, peft.PeftModel):
        return tensors_in(dict(model.state_dict()))
    states = (
        peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        for name in model.peft_config
    )
    return [tensor for state in states for tensor in tensors_in(dict(state))]


def weights_by_module(model: nn.Module, known: Known | None = None) -> dict[str, tuple[int, int]]:
    """Name of a module -> its own weights, and how many of them are not zero.

    Shared weights count with the module that comes first. A sparse layer counts as the dense layer that it stands for:
    the active weights of a BiDST layer are part of the layer, and those that they replace are zeros. Of a module that
    PEFT trains as a copy (`modules_to_save`) the one that is in use counts.

    Args:
        model: any module.
        known: as of `nonzero`.
    """
    zeros, values = replaced_weights(model)
    idle, seen = unused(model), set()
    found = {}
    for name, module in model.named_modules():
        if id(module) in idle:
            found[name] = (0, 0)
            continue
        if isinstance(module, CSRLinear):
            bias = 0 if module.bias is None else module.bias.numel()
            size = module.out_features * module.in_features
            found[name] = (size + bias, int(module.values.count_nonzero()) + bias)
            continue
        total = there = 0
        for weight in module.parameters(recurse=False):
            if id(weight) not in seen:
                seen.add(id(weight))
                total += 0 if id(weight) in values else entries(weight)
                there += 0 if id(weight) in zeros else nonzero(weight, known)
        found[name] = (total, there)
    return found


def unused(model: nn.Module) -> set[int]:
    """Ids of modules in whose place another one works: those that PEFT trains a copy of, or the copies if it is off."""
    peft = sys.modules.get("peft")
    wrappers = [] if peft is None else [m for m in model.modules() if isinstance(m, peft.utils.ModulesToSaveWrapper)]
    idle = []
    for wrapper in wrappers:
        active = [] if wrapper.disable_adapters else wrapper.active_adapters
        idle += [copy for name, copy in wrapper.modules_to_save.items() if name not in active]
        idle += [wrapper.original_module] if active else []
    return {id(module) for part in idle for module in part.modules()}


def replaced_weights(model: nn.Module) -> tuple[set[int], set[int]]:
    """Ids of weights that count as zeros, and of the values of BiDST adapters that stand for other weights.

    An adapter of `target="weight"` stands for the weights of its layer: they are the zeros where it works, and its
    values where it is off or merged. Values of a delta that is merged are in the weights.
    """
    zeros: set[int] = set()
    values: set[int] = set()
    for layer in sparse_layers(model):
        works = not (layer.merged or layer.disable_adapters)
        for adapter, target in layer.target.items():
            if target != "weight" and adapter not in layer.merged_adapters:
                continue
            weight, bias = layer.base_tensors()
            own = [(weight, layer.sparse_weight(adapter).values)]
            own += [(bias, layer.bidst_bias[adapter])] if adapter in layer.bidst_bias else []
            values |= {id(value) for _, value in own}
            zeros |= {id(weight if works and adapter in layer.active_adapters else value) for weight, value in own}
    return zeros, values


def sparse_layers(model: nn.Module) -> list[Any]:
    """Layers of BiDST in a model; PEFT need not be installed where there are none."""
    layers = sys.modules.get("hf_efficient.sparsity.tuner.layer")
    return [] if layers is None else [m for m in model.modules() if isinstance(m, layers.BiDSTLayer)]


def density(module: nn.Module, known: Known | None = None) -> float:
    """Share of a layer's weights that is not zero: of the products that it computes, those that are of any use.

    Where a module has several (stacks of experts, projections of attention) all of them count together. `known`: as of
    `nonzero`.
    """
    if isinstance(module, (CSRLinear, SparseWeight)):
        return 1.0  # multiplies what it stores alone
    layers = sys.modules.get("hf_efficient.sparsity.tuner.layer")
    if layers is not None and isinstance(module, layers.BiDSTLayer):
        weights = [module.sparse_weight(a) for a in module.active_adapters if module.target.get(a) == "weight"]
        works = weights and not (module.merged or module.disable_adapters)
        return len(weights[0].indices) / weights[0].numel if works else 1.0
    weights = [weight for weight in module.parameters(recurse=False) if weight.dim() > 1]
    size = sum(entries(weight) for weight in weights)
    return sum(nonzero(weight, known) for weight in weights) / size if size else 1.0


def entries(weight: Tensor) -> int:
    """Numbers that a weight stands for; bitsandbytes packs two of them in a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else prod(state.shape)


@torch.no_grad()
def nonzero(weight: Tensor, known: Known | None = None) -> int:
    """Entries that are not zero; of quantized weights, whose codes are not numbers, all.

    Args:
        weight: of a model.
        known: what was counted already, by the weight's id, and is not read again; the count is added. The weights must
            live, and not change, while it does.
    """
    known = {} if known is None else known
    if id(weight) not in known:
        known[id(weight)] = _counted(weight)
    return known[id(weight)]


def _counted(weight: Tensor) -> int:
    if weight.is_meta or hasattr(weight, "__tensor_flatten__") or getattr(weight, "quant_state", None) is not None:
        return entries(weight)
    values = weight if weight.layout is torch.strided else weight.values()
    if values.is_floating_point() and values.element_size() == 1:
        values = values.float()  # of 8-bit floats torch counts nothing
    return int(values.count_nonzero())
