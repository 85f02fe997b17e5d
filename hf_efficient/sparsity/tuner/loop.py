"""Sparse training in any loop: attach a BiDST model's engine to its optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from hf_efficient.checks import check_model, check_whole
from hf_efficient.compat.torch import steps_inside_backward
from hf_efficient.optimizer_state import held_ids, innermost
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.topology.base import new_topology
from hf_efficient.sparsity.training.distributed import average_under_fsdp
from hf_efficient.sparsity.training.engine import ENGINES, SparseTraining
from hf_efficient.sparsity.training.monitor import warn_if_no_exchange_will_come

from .base_weight import BaseWeight, is_quantized
from .config import BiDSTConfig
from .layer import BiDSTLayer
from .quantized import QuantizedLinear
from .targets import weight_of

ONE_DEVICE = (
    "computes with copies of the layers, whose gradients a topology cannot read. Use DistributedDataParallel "
    "(torchrun or accelerate launch), or one device: CUDA_VISIBLE_DEVICES=0."
)


def train_sparsely(
    model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int, adapter_name: str | None = None
) -> SparseTraining:
    """Let an optimizer's steps exchange the weights of a BiDST model, as its config says: for any training loop.

    Call it once, after the optimizer is made (when resuming, after its state dict is loaded). The loop stays as it is,
    also with a gradient scaler: steps that it skips do not count.

    Args:
        model: what `get_peft_model(model, BiDSTConfig(...))` returned, or a model with such an adapter.
        optimizer: over the model's trainable parameters; a `torch.optim.Optimizer`.
        total_steps: optimizer steps of the whole training.
        adapter_name: of the adapter that trains; None: the active one.

    Returns:
        The engine; `report()` gives the sparsity and what was exchanged.

    Raises:
        TypeError: `model` is no model.
        ValueError: `total_steps` < 1, the model has no BiDST adapter of that name, or the optimizer does not train its
            values.
    """
    training = make_training(model, optimizer, total_steps, adapter_name)
    training.handles.append(training.optimizer.register_step_post_hook(lambda *_: training.step()))
    return training


def make_training(
    model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int, adapter_name: str | None = None
) -> SparseTraining:
    """The engine of `train_sparsely`, not yet attached to the optimizer; replaces an earlier one of these weights."""
    check_model(model)
    check_whole("total_steps", total_steps, 1)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BiDSTLayer)}
    known = sorted({name for layer in layers.values() for name in layer.bidst_weight})
    if adapter_name is None:
        adapter_name = next((a for layer in layers.values() for a in layer.active_adapters), "default")
    layers = {name: layer for name, layer in layers.items() if adapter_name in layer.bidst_weight}
    if not layers:
        raise ValueError(
            f"The model has no BiDST adapter {adapter_name!r}; it has {', '.join(map(repr, known)) or 'none'}. Make "
            "one: get_peft_model(model, BiDSTConfig(...))."
        )
    config = _config_of(model, adapter_name)
    copied = any(isinstance(module, nn.DataParallel) and len(module.device_ids) > 1 for module in model.modules())
    if copied and config.needs_engine:
        raise ValueError(f"nn.DataParallel {ONE_DEVICE}")
    weights = {name: layer.sparse_weight(adapter_name) for name, layer in layers.items()}
    _check_trained(layers, weights, optimizer, adapter_name)
    if config.resolved_init == "snip":
        for layer in layers.values():
            if isinstance(layer, QuantizedLinear):
                weight_of(layer)  # raises where codes cannot be read
    _detach_earlier(weights, optimizer)
    topology = new_topology(config, total_steps)
    training = SparseTraining(
        weights,
        optimizer,
        topology,
        init=config.resolved_init,
        init_steps=config.init_steps,
        global_budget=config.distribution == "global",
        bases=_Bases(layers),
        additive=config.target == "delta",
        seed=config.seed,
        model_weights=weights_of_model(model),
    )
    training.handles += average_under_fsdp(model)
    warn_if_no_exchange_will_come(topology, config.topology, training.init_steps)
    return training


def _detach_earlier(weights: dict[str, SparseWeight], optimizer: torch.optim.Optimizer) -> None:
    """Detach an earlier engine of these weights; two engines would count each step twice."""
    for engine in list(ENGINES):
        if engine.optimizer is not innermost(optimizer):
            continue
        if not set(weights.values()) & set(engine.weights.values()) and engine.handles:
            raise ValueError(
                "The optimizer already exchanges the weights of another adapter, and can keep the state of one only. "
                "Give each BiDST adapter that trains an optimizer of its own."
            )
        engine.detach()


def _check_trained(
    layers: dict[str, BiDSTLayer], weights: dict[str, SparseWeight], optimizer: torch.optim.Optimizer, adapter: str
) -> None:
    """Check that this optimizer's steps will change the adapter."""
    if all(adapter not in layer.active_adapters or layer.disable_adapters or layer.merged for layer in layers.values()):
        raise ValueError(
            f"Adapter {adapter!r} is not used in the model's forward (it is inactive, disabled or merged): it "
            f"cannot learn. Call set_adapter({adapter!r}), or unmerge_adapter()."
        )
    frozen = [name for name, weight in weights.items() if not weight.values.requires_grad]
    if frozen:
        raise ValueError(
            f"The active weights of {frozen[0]!r} (and of {len(frozen) - 1} more layers) are frozen. Call "
            f"set_adapter({adapter!r}), or load the adapter with is_trainable=True, before the optimizer is made."
        )
    if hasattr(optimizer, "optimizer_dict") or any(steps_inside_backward(w.values) for w in weights.values()):
        raise ValueError(
            "The optimizer steps inside backward (layerwise), or gradients are taken away there (DeepSpeed's ZeRO), "
            "where a topology cannot read those of a whole step. Use one that steps after backward, e.g. "
            "optim='adamw_torch', and DistributedDataParallel or FSDP2."
        )
    trained = held_ids(optimizer)
    missing = [name for name, weight in weights.items() if id(weight.values) not in trained]
    if missing:
        raise ValueError(
            f"The optimizer does not train the active weights of {missing[0]!r} (nor of {len(missing) - 1} more "
            "layers). Make it after get_peft_model, over all parameters that require gradients."
        )


def weights_of_model(model: nn.Module) -> int:
    """Number of the plain model's weights, without those that adapters of any kind have added."""
    counted = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))
        for name in module.adapter_layer_names
        for parameter in getattr(module, name, nn.Module()).parameters()
    }
    total = 0
    for module in model.modules():
        codes = not isinstance(module, BaseTunerLayer) and is_quantized(module)
        total += BaseWeight(module).numel if codes else 0
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in counted and (not codes or name == "bias"):
                counted.add(id(parameter))
                total += parameter.numel()
    return total


class _Bases(Mapping[str, Tensor]):
    """Name -> the numbers of a layer's base weight, read when they are asked for: of quantized ones they are copies."""

    def __init__(self, layers: Mapping[str, BiDSTLayer]) -> None:
        self.layers = layers

    def __getitem__(self, name: str) -> Tensor:
        return weight_of(self.layers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def _config_of(model: nn.Module, adapter_name: str) -> BiDSTConfig:
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, dict) and isinstance(configs.get(adapter_name), BiDSTConfig):
            config: BiDSTConfig = configs[adapter_name]
            return config
    raise ValueError(f"The model has no BiDSTConfig of adapter {adapter_name!r}.")
