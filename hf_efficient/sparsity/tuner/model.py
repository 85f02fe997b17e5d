"""BiDST's tuner: wraps the targeted layers, gives each layer its budget, and checks loaded adapters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from hf_efficient.compat.peft import is_target
from hf_efficient.compat.transformers import add_default_callback
from hf_efficient.extras import extra
from hf_efficient.sparsity.topology.base import new_topology
from hf_efficient.sparsity.training.monitor import Monitor

from .adapter_checks import check_counts, check_others
from .base_weight import BaseWeight, is_quantized
from .budgets import layer_budgets, pattern_groups
from .checksum import OTHER, checksum
from .combine import Recipe, add_weighted
from .config import BiDSTConfig
from .experts import Experts
from .hotswap import swap
from .layer import BiDSTLayer, Linear
from .quantized import QuantizedLinear, gaps_named, refuse_merging, without_deltas
from .targets import check_layer, check_unshared, inside_wrapper, resolve_targets, weights_of
from .tied import embeddings_and_tied, heads_that_follow

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
    _quantized_others: list[nn.Module] | None = None  # as found in the first training forward
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
        targeted = {key: m for key, m in modules.items() if is_target(config, key)}
        for key, module in targeted.items():
            check_layer(key, module, modules.get(key.rpartition(".")[0]), config.target)
        if config.trains_others:
            self._save_others(config, modules)
        weights = {name: weight for key, m in targeted.items() for name, weight in weights_of(key, m).items()}
        check_unshared(self.model, weights)
        topology = new_topology(config, 1)
        groups = pattern_groups(config, targeted)
        fixed = {} if topology.resizes else {key: each.active for key, each in groups.items()}
        check_counts(config.counts, {key: weight.numel for key, weight in weights.items()}, fixed)
        saved = {key: config.counts.get(key, 0) for key in weights}
        known = all(saved.values())
        if config.stored:
            check_others(config.stored, config.modules_to_save or (), modules)
        absent = any(weight.tensor.is_meta for weight in weights.values())  # "global" compares the layers' numbers
        take_saved = known and (not topology.resizes or (absent and config.distribution == "global"))
        self._budgets = saved if take_saved else layer_budgets(config, weights, groups)
        self._monitor = Monitor("default", config.topology) if config.needs_engine else None
        at_first = {key: topology.count_at(0, k, weights[key].numel) for key, k in self._budgets.items()}
        self._active_counts = saved if known else at_first

    def _save_others(self, config: BiDSTConfig, modules: dict[str, nn.Module]) -> None:
        """List in `modules_to_save` all modules that have parameters of their own and are not targeted."""
        names: list[str] = []
        sparse = [key for key in modules if is_target(config, key)]
        sharing = embeddings_and_tied(self.model, modules)
        heads = heads_that_follow(self.model, modules, sharing)
        config.modules_to_tie = heads or None  # by PEFT, to the copy of the embedding that trains
        for key, module in modules.items():
            if key in (sharing if heads is None else heads):
                continue
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
        config.ensure_weight_tying = config.ensure_weight_tying or bool(heads)

    def _check_tied_modules(self, model: nn.Module, config: BiDSTConfig) -> None:  # type: ignore[override]
        """Called by PEFT, which knows a tied embedding by the names `embed_tokens` and `lm_head` only."""
        if not config.modules_to_tie:
            super()._check_tied_modules(model, config)

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
        self._quantized_others = None
        if isinstance(target, BiDSTLayer):
            for name in weights_of(current_key, target):
                inner = name.removeprefix(current_key).removeprefix(".")
                self._update(target.get_submodule(inner), adapter_name, name, config)  # type: ignore[arg-type]
            return
        check_layer(current_key, target, parent, config.target)
        layer: Any = target
        for key, weight in weights_of(current_key, target).items():
            layer = kind_of(weight)(layer, weight.parameter)
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

    def _check_merge_allowed(self) -> None:
        """Called by PEFT before the first layer is merged."""
        super()._check_merge_allowed()  # type: ignore[no-untyped-call]
        for module in self.model.modules():
            if isinstance(module, QuantizedLinear):
                refuse_merging(module.get_base_layer())
            if isinstance(module, BiDSTLayer) and isinstance(module.get_base_weight(), DTensor):
                raise ValueError(
                    "The model is sharded (FSDP2), and an adapter cannot be merged into shards. Save the adapter, load "
                    "it with the model in one process, and merge there."
                )

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "linear",
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> None:
        """Make a new delta from others, for inference or further training with a fixed topology.

        Args:
            adapters: names of adapters with target="delta".
            weights: one for each.
            adapter_name: of the new one, which is not active.
            combination_type: "linear", "magnitude_prune", "ties", "dare_linear" or "dare_ties" (see `combine.Recipe`).
            density: share of each adapter's own values that stay, in (0, 1]; None for "linear".
            majority_sign_method: "total" or "frequency".

        Raises:
            ValueError: an argument is out of range, or adapters cannot be combined.
        """
        recipe = Recipe(combination_type, tuple(weights), density, majority_sign_method)
        add_weighted(self, adapters, recipe, adapter_name)

    def hotswap_adapter(self, folder: str, adapter_name: str = "default", **kwargs: Any) -> None:
        """Put the adapter of a folder (or of the Hub) in the place of a loaded delta; see `hotswap.swap`."""
        if adapter_name not in self.peft_config:
            raise ValueError(f"There is no adapter {adapter_name!r}; expected one of {', '.join(self.peft_config)}.")
        old: BiDSTConfig = self.peft_config[adapter_name]  # type: ignore[assignment]
        self.peft_config[adapter_name] = swap(self.model, old, folder, adapter_name, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Called by PEFT around every forward; it drops arguments that a tuner does not read in silence."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names (an adapter for each row of a batch) is not supported by BiDST. Call the model once for "
                "each adapter: set_adapter(name), and the rows of that adapter; or convert them (peft.convert_to_lora)."
            )
        if torch.compiler.is_compiling() or not (self.model.training and torch.is_grad_enabled()):
            yield
            return
        if self._quantized_others is None:
            self._quantized_others = without_deltas(self.model)
        with gaps_named(self._quantized_others):
            yield

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
        if any(isinstance(tensor, DTensor) for name, tensor in state_dict.items() if "bidst_" in name):
            raise ValueError(
                "The adapter is sharded (FSDP2): this process has a piece of it. Gather it on all ranks, save it on "
                "one: from torch.distributed.checkpoint.state_dict import get_model_state_dict, StateDictOptions; "
                "state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)); "
                "model.save_pretrained(folder, state_dict=state)."
            )
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
            raise ValueError(OTHER)
        for name, layer in model.named_modules():
            indices = tensors.get(f"{name}.bidst_weight.{adapter_name}.indices")
            if isinstance(layer, BiDSTLayer) and indices is not None:
                weight = layer.sparse_weight(adapter_name)
                weight.check(indices, name)
                if len(indices) != len(weight.indices):  # under a global budget a layer's count changes
                    weight.resize(torch.arange(0), indices.to(weight.indices.device))
        return tensors


def kind_of(weight: BaseWeight) -> type[BiDSTLayer]:
    """The class of the layer that wraps a weight's layer."""
    if is_quantized(weight.module):
        return QuantizedLinear
    if weight.stacked:
        return Experts
    return Linear if isinstance(weight.module, (nn.Linear, Conv1D)) else BiDSTLayer
