"""BiDST's tuner: wraps the targeted layers, gives each layer its budget, and checks loaded adapters."""

from __future__ import annotations

import re
import warnings
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_efficient.compat.peft import is_target
from hf_efficient.compat.transformers import add_default_callback
from hf_efficient.extras import extra
from hf_efficient.sparsity.sparse_weight import check_indices
from hf_efficient.sparsity.topology.base import new_topology
from hf_efficient.sparsity.topology.distribution import erk, largest, uniform
from hf_efficient.sparsity.training.monitor import Monitor

from .adapter_checks import check_counts, check_others
from .config import BiDSTConfig
from .experts import Experts
from .layer import BiDSTLayer, Linear
from .targets import check_layer, check_unshared, inside_wrapper, matrices_of, resolve_targets, tensors_of

with extra("sparsity"):
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import (
        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
        ModulesToSaveWrapper,
    )


class BiDSTModel(BaseTuner):
    """A model whose targeted layers are sparse, or have a sparse delta; made by `peft.get_peft_model`.

    Args:
        model: any `torch.nn.Module`.
        config: `BiDSTConfig`.
        adapter_name: of the first adapter.
    """

    prefix: str = "bidst_"
    tuner_layer_cls = BiDSTLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    def _check_new_adapter_config(self, config: BiDSTConfig) -> None:
        """Called by PEFT first for a new adapter; fills in all that depends on the model."""
        from .callback import DefaultSparsityCallback  # the Trainer is not imported before there is a model

        add_default_callback(DefaultSparsityCallback)
        super()._check_new_adapter_config(config)
        modules = {key: module for key, module in self.model.named_modules() if not inside_wrapper(key, self.model)}
        if config.target_modules is None and config.target == "delta":
            config = self._prepare_adapter_config(config, self.get_model_config(self.model))
        else:
            resolve_targets(config, modules, self.model)
        if config.trains_others:
            self._save_others(config, modules)
        targeted = {key: m for key, m in modules.items() if is_target(config, key)}
        for key, module in targeted.items():
            check_layer(key, module, modules.get(key.rpartition(".")[0]))
        tensors = {name: t for key, module in targeted.items() for name, t in tensors_of(key, module).items()}
        weights = {name: weight for name, (_, weight) in tensors.items()}
        check_unshared(self.model, weights.keys(), weights.values())
        check_counts(config.counts, {key: weight.numel() for key, weight in weights.items()})
        saved = {key: config.counts.get(key, 0) for key in weights}
        known = all(saved.values())
        if config.stored:
            check_others(config.stored, config.modules_to_save or (), modules)
        depends_on_values = config.distribution in ("as_pruned", "global")  # which may be absent while loading
        self._budgets = saved if known and depends_on_values else layer_budgets(config, tensors)
        self._monitor = Monitor("default", config.topology) if config.needs_engine else None
        start = new_topology(config, 1).initial_count
        self._active_counts = (
            saved if known else {key: start(k, weights[key].numel()) for key, k in self._budgets.items()}
        )

    def _save_others(self, config: BiDSTConfig, modules: dict[str, nn.Module]) -> None:
        """List in `modules_to_save` all modules that have parameters of their own and are not targeted."""
        names: list[str] = []
        tied = self._get_module_names_tied_with_embedding() or []
        sparse = [key for key in modules if is_target(config, key)]
        for key, module in modules.items():
            if key in tied:
                continue  # PEFT ties it to the copy of the embedding that trains
            own = isinstance(module, ModulesToSaveWrapper) or any(True for _ in module.parameters(recurse=False))
            covered = any(key == name or key.startswith(f"{name}.") for name in names)
            if own and (not key or any(inner.startswith(f"{key}.") for inner in sparse)):
                warnings.warn(
                    f"{[name for name, _ in module.named_parameters(recurse=False)]} lie directly in "
                    f"{repr(key) if key else 'the model'} and stay frozen: PEFT cannot save a module that has "
                    "sparse layers inside. Move them into a module of their own.",
                    stacklevel=2,
                )
            elif own and not covered and key not in sparse:
                names.append(key)
        known = list(config.modules_to_save or [])
        config.modules_to_save = known + [name for name in names if name not in known] or None
        for key in sparse:
            # PEFT matches these names by their end in one place and by any part in another; a match here is not sparse
            alike = [name for name in names if key.endswith(name) or f".{name}." in f".{key}."]
            if alike or not is_target(config, key):
                raise ValueError(
                    f"train_others wants to save {', '.join(map(repr, alike or names[:3]))}, but PEFT would take "
                    f"{key!r}, which has a similar name, for the same module. Give the modules other names, or set "
                    "train_others=False and list modules_to_save."
                )
        config.ensure_weight_tying = config.ensure_weight_tying or bool(tied)

    def _add_modules_to_save_to_tie(self, config: BiDSTConfig, tied_weight_keys: list[str]) -> None:
        config.modules_to_tie = tied_weight_keys

    def _create_and_replace(  # type: ignore[override]
        self,
        config: BiDSTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, BiDSTLayer):
            for name in tensors_of(current_key, target):
                inner = name.removeprefix(current_key).removeprefix(".")
                self._update(target.get_submodule(inner), adapter_name, name, config)  # type: ignore[arg-type]
            return
        check_layer(current_key, target, parent)
        layer: Any = target
        for key, (name, _tensor) in tensors_of(current_key, target).items():
            kind = Linear if isinstance(layer, (nn.Linear, Conv1D)) else BiDSTLayer if name == "weight" else Experts
            layer = kind(layer, name)
            layer.set_adapter([adapter_name])
            self._update(layer, adapter_name, key, config)
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)  # an additional adapter is not trainable by default
        self._replace_module(parent, target_name, layer, target)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # switches off torch's inference path, which reads the weights without calling the layers
            parent.activation_relu_or_gelu = 0

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, (ModulesToSaveWrapper, Experts)) or isinstance(new_module, Experts):
            setattr(parent, child_name, new_module)  # PEFT would look for a weight, which composite modules do not have
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _update(self, layer: BiDSTLayer, adapter_name: str, key: str, config: BiDSTConfig) -> None:
        layer.update_layer(adapter_name, key, self._active_counts[key], config)
        weight = layer.sparse_weight(adapter_name)
        weight.budget = self._budgets[key]
        if self._monitor is not None:
            self._monitor.adapter = adapter_name
            weight.monitor = self._monitor

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: BiDSTConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Called before the config is written; adds the counts and the checksum of what is saved."""
        layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, BiDSTLayer)}
        config.counts = {
            key: len(layer.sparse_weight(adapter_name).indices)
            for key, layer in layers.items()
            if adapter_name in layer.bidst_weight
        }
        config.checksum = checksum(state_dict, adapter_name)
        return super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: BiDSTConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        tensors = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        if config.checksum is not None and checksum(tensors, adapter_name) != config.checksum:
            raise ValueError(
                "The adapter's tensors are not those that were saved (their checksum differs): the file is damaged, or "
                "it and adapter_config.json are of different adapters. Fetch both again. If you changed the tensors "
                'yourself, set "checksum" to null in adapter_config.json.'
            )
        for name, layer in model.named_modules():
            indices = tensors.get(f"{name}.bidst_weight.{adapter_name}.indices")
            if isinstance(layer, BiDSTLayer) and indices is not None:
                weight = layer.sparse_weight(adapter_name)
                check_indices(indices, weight.numel, name)
                if len(indices) != len(weight.indices):  # under a global budget a layer's count changes
                    weight.resize(torch.arange(0), indices.to(weight.indices.device))
        return tensors


def layer_budgets(config: BiDSTConfig, tensors: dict[str, tuple[str, Tensor]]) -> dict[str, int]:
    """The budget of each layer: name -> k active weights.

    Args:
        config: `sparsity`, `distribution` and `init` are read.
        tensors: of all layers, from `tensors_of`.

    Raises:
        ValueError: a layer would have no weight.
    """
    density = 1 - config.sparsity
    weights = {key: weight for key, (_, weight) in tensors.items()}
    if config.distribution == "as_pruned":
        counts = [int(weight.count_nonzero()) for weight in weights.values()]
    elif config.distribution == "global" and config.resolved_init == "magnitude":
        counts = largest(list(weights.values()), density)
    else:
        matrices = [matrices_of(weight, name) for name, weight in tensors.values()]
        if config.distribution == "erk":
            each = iter(erk([shape for shapes in matrices for shape in shapes], density))
            counts = [sum(next(each) for _ in shapes) for shapes in matrices]
        else:
            counts = uniform([tuple(weight.shape) for weight in weights.values()], density)
    for (key, weight), k in zip(weights.items(), counts, strict=True):
        if k < 1:
            raise ValueError(
                f"sparsity={config.sparsity} leaves none of the {weight.numel()} weights of {key!r} active. Lower it, "
                "use distribution='erk', or leave the layer out with exclude_modules."
            )
    return dict(zip(weights, counts, strict=True))


def checksum(state_dict: dict[str, Tensor], adapter_name: str) -> int:
    """CRC-32 over names and bytes of an adapter's tensors; independent of their order and of the adapter's name."""
    total = 0
    for key, tensor in state_dict.items():
        where = re.search(rf"\.(bidst_weight|bidst_bias|modules_to_save)\.{re.escape(adapter_name)}(\.|$)", key)
        if where is None:
            continue
        name = key[: where.start()].removeprefix("base_model.model.") + where[1] + key[where.end() :]
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        total ^= zlib.crc32(raw, zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()))
    return total
