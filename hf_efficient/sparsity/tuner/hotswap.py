"""Another adapter in the place of a loaded one, its tensors written into those that are there."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient.extras import extra
from hf_efficient.sparsity.sparse_weight import check_indices
from hf_efficient.sparsity.training.engine import ENGINES

from .checksum import OTHER, checksum
from .config import BiDSTConfig
from .layer import BiDSTLayer

with extra("sparsity"):
    from peft.utils import load_peft_weights

PREFIX = "base_model.model."


@torch.no_grad()
def swap(
    model: nn.Module, old: BiDSTConfig, folder: str | os.PathLike[str], adapter: str, **kwargs: Any
) -> BiDSTConfig:
    """Write the adapter of a folder into a loaded one; nothing is written if it does not fit.

    Tensors stay the same objects where a layer has as many values as before, so that a compiled model stays compiled.
    Layers that the new adapter does not have get a delta of zero.

    Args:
        model: the base model with its BiDST layers.
        old: config of the loaded adapter.
        folder: or id on the Hub.
        adapter: name of the loaded one.
        kwargs: as in `PeftConfig.from_pretrained`.

    Returns:
        The new adapter's config.

    Raises:
        ValueError: the adapter is merged, training, has other targets, layers or modules to save, or is damaged.
    """
    new = BiDSTConfig.from_pretrained(str(folder), **kwargs)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BiDSTLayer) and adapter in layer.bidst_weight
    }
    tensors: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu", **kwargs)
    _check_swap(layers, old, new, tensors, adapter)
    for name, layer in layers.items():
        weight = layer.sparse_weight(adapter)
        indices = tensors.get(f"{PREFIX}{name}.bidst_weight.indices")
        if indices is None:
            weight.values.zero_()
            continue
        if len(indices) != len(weight.indices):
            weight.resize(torch.arange(0), indices.to(weight.indices.device))
        values = tensors[f"{PREFIX}{name}.bidst_weight.values"]
        weight.select(indices.to(weight.indices.device), values.to(weight.values))
    new.inference_mode = old.inference_mode
    return new


def _check_swap(
    layers: dict[str, BiDSTLayer], old: BiDSTConfig, new: BiDSTConfig, tensors: dict[str, Tensor], adapter: str
) -> None:
    again = f"Load it under another name, or delete_adapter({adapter!r}) and load_adapter(folder, {adapter!r})."
    if old.target != "delta" or new.target != "delta":
        raise ValueError(
            f"hotswap_adapter exchanges deltas; adapter {adapter!r} has target={old.target!r} and the new one "
            f"target={new.target!r}. {again}"
        )
    for name, layer in layers.items():
        if adapter in layer.merged_adapters:
            raise ValueError(f"Adapter {adapter!r} is merged ({name!r}). Call unmerge_adapter() first.")
    swapped = [layer.sparse_weight(adapter) for layer in layers.values()]
    if any(weight in swapped for engine in ENGINES for weight in engine.weights.values()):
        raise ValueError(f"Adapter {adapter!r} is being trained: its optimizer's state belongs to its values. {again}")
    if old.modules_to_save or new.modules_to_save:
        raise ValueError(
            f"The loaded adapter trained {old.modules_to_save or 'no modules'} in full and the new one "
            f"{new.modules_to_save or 'none'} (modules_to_save), which hotswap_adapter does not exchange. {again}"
        )
    others = sorted(new.counts.keys() - layers.keys())
    if others:
        raise ValueError(
            f"The new adapter has deltas for {others[0]!r} (and {len(others) - 1} more), which adapter {adapter!r} "
            f"does not have. {again}"
        )
    for name in new.counts:
        indices = tensors.get(f"{PREFIX}{name}.bidst_weight.indices")
        if indices is None or f"{PREFIX}{name}.bidst_weight.values" not in tensors:
            raise ValueError(f"The new adapter's file has no tensors for {name!r}: it is damaged. Fetch it again.")
        check_indices(indices, layers[name].sparse_weight(adapter).numel, name)
    named = {key.replace(".bidst_weight.", f".bidst_weight.{adapter}."): tensor for key, tensor in tensors.items()}
    if new.checksum is not None and checksum(named, adapter) != new.checksum:
        raise ValueError(OTHER)
