"""Checks of an adapter's files, before PEFT uses them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hf_efficient.reading import AGAIN, FLOATS, Stored, is_whole, open_tensors, read_json, shown, stored_in

WEIGHTS_NAME = "adapter_model.safetensors"
LARGEST_CONFIG = 1 << 24
INDICES, VALUES = ".bidst_weight.indices", ".bidst_weight.values"
NAMES = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save")
FLAGS = ("train_others", "ensure_weight_tying", "inference_mode")


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in adapter_config.json.

    Raises:
        ValueError: it is not an object, or of another method.
    """
    values = read_json(path, LARGEST_CONFIG)
    if values.get("peft_type") != "BIDST":
        raise ValueError(f"{path}: peft_type={shown(values.get('peft_type'))}, expected 'BIDST'. {AGAIN}")
    for name in ("score_lr", "implicit_weight"):  # settings of earlier versions, read in training alone
        values.pop(name, None)
    if {"self", "cls", "runtime_config"} & values.keys():
        raise ValueError(f"{path} has a field that is not a setting: 'self', 'cls' or 'runtime_config'. {AGAIN}")
    return values


def check_values(config: Any) -> None:
    """Check the types of fields that are neither plain numbers nor choices.

    Raises:
        ValueError: a field is of another type or out of range; the message names it.
    """
    fields = config.__dict__
    for name in NAMES:
        value = fields[name]
        words = [value] if isinstance(value, str) else value
        lists = isinstance(words, (list, tuple, set)) and all(isinstance(word, str) and word for word in words)
        if words is not None and (not lists or (name == "modules_to_save" and words is not value)):
            raise ValueError(f"{name}={shown(value)} is out of range; expected names of modules, or null.")
    blocks = fields["layers_to_transform"]
    numbers = [blocks] if is_whole(blocks) else blocks
    if numbers is not None and not (isinstance(numbers, (list, tuple)) and all(map(is_whole, numbers))):
        raise ValueError(f"layers_to_transform={shown(blocks)} is out of range; expected numbers of blocks, or null.")
    for name in FLAGS:
        if not isinstance(fields[name], bool) and (fields[name] is not None or name != "train_others"):
            raise ValueError(f"{name}={shown(fields[name])} is out of range; expected true or false.")
    if not is_whole(config.seed) or not 0 <= config.seed < 2**31:
        raise ValueError(f"seed={shown(config.seed)} is out of range; expected a whole number from 0 to 2^31 - 1.")
    if not isinstance(config.counts, dict):
        raise ValueError(f"counts={shown(config.counts)} is out of range; expected active weights by layer. {AGAIN}")
    for layer, count in config.counts.items():
        if not isinstance(layer, str) or not is_whole(count) or count < 1:
            raise ValueError(f"counts: {shown(layer)}={shown(count)} is out of range; expected an int >= 1. {AGAIN}")
    checksum = config.checksum
    if checksum is not None and (not is_whole(checksum) or not 0 <= checksum < 2**32):
        raise ValueError(f"checksum={shown(checksum)} is out of range; expected 32 bits, or null. {AGAIN}")


def check_counts(counts: Mapping[str, int], sizes: Mapping[str, int], fixed: Mapping[str, int]) -> None:
    """Check that no layer has more active weights than entries, or another number than its pattern says.

    Args:
        counts: layer -> active weights, by the config.
        sizes: layer -> entries, in the model.
        fixed: layer -> active weights, by its pattern.

    Raises:
        ValueError: a layer has.
    """
    for layer, count in counts.items():
        if count > sizes.get(layer, count):
            raise ValueError(
                f"adapter_config.json: counts: {layer!r}={count} is out of range; the layer has {sizes[layer]} "
                "weights. The file is damaged or from another model: fetch it again, or empty counts to start over."
            )
        if count != fixed.get(layer, count):
            raise ValueError(
                f"adapter_config.json: counts: {layer!r}={count} is out of range; by its pattern the layer has "
                f"{fixed[layer]} active weights. The file is damaged or from another model: fetch it again."
            )


def read_header(path: Path, config: Any) -> dict[str, Stored]:
    """The header of an adapter's weights, compared with its config.

    Returns:
        name -> dtype and shape; empty where there is no such file.

    Raises:
        ValueError: the file is damaged, or does not belong to the config.
    """
    if not path.is_file():
        return {}
    with open_tensors(path) as file:
        stored = stored_in(file)
    found: dict[str, int] = {}
    for name, indices in stored.items():
        if not name.endswith(INDICES):
            continue
        values = stored.get(name.removesuffix(INDICES) + VALUES, Stored("nothing", ()))
        if indices.dtype not in ("I32", "I64") or len(indices.shape) != 1 or values.shape != indices.shape:
            raise ValueError(
                f"{path}: {shown(name)} is {indices}, its values {values}; expected one index each. {AGAIN}"
            )
        if values.dtype not in FLOATS:
            raise ValueError(f"{path}: the values of {shown(name)} are {values.dtype}, expected floats. {AGAIN}")
        found[name.removesuffix(INDICES).removeprefix("base_model.model.")] = indices.shape[0]
    for layer, count in config.counts.items():
        if found.get(layer) != count:
            raise ValueError(
                f"{path}: {shown(layer)} has {found.get(layer, 0)} active weights, but {count} by adapter_config.json "
                f"(counts): the files are of different adapters, or damaged. Fetch both again."
            )
    return stored


def check_others(stored: Mapping[str, Stored], names: Collection[str], modules: Mapping[str, nn.Module]) -> None:
    """Check that the tensors of `modules_to_save` are stored; PEFT does not check it.

    Args:
        stored: the header of an adapter's weights.
        names: `modules_to_save`.
        modules: of the model, by name.

    Raises:
        ValueError: a tensor is missing.
    """
    for key, module in modules.items():
        if not key or not any(key.endswith(name) for name in names):
            continue
        original: Any = getattr(module, "original_module", module)
        for name in original.state_dict():
            if f"base_model.model.{key}.{name}" not in stored:
                raise ValueError(
                    f"{WEIGHTS_NAME} is damaged or from another model: the tensor {name!r} of {key!r}, which "
                    "modules_to_save lists, is missing. Fetch it again."
                )
