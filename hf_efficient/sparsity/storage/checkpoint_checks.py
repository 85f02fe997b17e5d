"""Checks of a sparse checkpoint: its layout, header and model are compared before memory is allocated."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient.compat.transformers import from_config
from hf_efficient.files.interrupted_save import configs_inside
from hf_efficient.reading import (
    AGAIN,
    Fields,
    Stored,
    errors_named,
    is_whole,
    open_tensors,
    parse_json,
    read_json,
    shown,
)

FREE, EXPANSION = 2**28, 256  # numbers that any file may expand to, and numbers for each of its bytes
LARGEST_CONFIG, MOST_LAYERS, MOST_LABELS = 1 << 24, 1024, 1 << 17


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict, of numbers alone.

    Raises:
        ValueError: it holds something else, as that of `torch.ao.quantization.quantize_dynamic` does, or numbers that
            safetensors does not store.
    """
    state: dict[str, Any] = model.state_dict()
    for name, stored in state.items():
        if not isinstance(stored, Tensor) or stored.is_quantized:
            kind = "tensor of codes" if isinstance(stored, Tensor) else type(stored).__name__
            raise ValueError(
                f"{shown(name)} of the {type(model).__name__} is a {kind}, expected a tensor of numbers: sparse files "
                "hold neither codes, as torch.ao.quantization makes them, nor what modules keep beside their tensors. "
                "Save and load the model before it is quantized, or keep it by torch.save(model.state_dict(), path)."
            )
        unstored = stored.is_complex() and stored.dtype != torch.complex64
        if unstored or stored.layout != torch.strided:
            kind = str(stored.dtype if unstored else stored.layout).removeprefix("torch.")
            raise ValueError(
                f"{shown(name)} of the {type(model).__name__} is a {kind} tensor, expected a dense one of real numbers "
                "or complex64: safetensors stores no other. Convert it (.to_dense(), .to(torch.complex64))."
            )
    return state


def check_layout(stored: Mapping[str, Stored], layout: object, where: str) -> dict[str, tuple[int, ...]]:
    """Compare the layout in the metadata with the header, without reading tensors.

    Returns:
        name -> shape of the dense tensors.

    Raises:
        ValueError: they disagree.
    """
    left = dict(stored)
    sizes: dict[str, tuple[int, ...]] = {}
    for name, entry in Fields(layout, where).values.items():
        fields = Fields(entry, f"{where}: {shown(name)}")
        shape = fields.items("shape", 64)
        if not all(type(s) is int and 0 <= s < 2**40 for s in shape):
            raise fields.wrong("shape", "whole numbers from 0 to 2^40")
        fields.text("dtype", r"[a-z0-9_]{1,20}")
        fields.whole("crc", 0, 2**32 - 1)
        form, n = fields.text("form", "dense|bitmap|gaps"), math.prod(shape)
        names = [name] if form == "dense" else [f"{name}:{form}", f"{name}:values"]
        if any(part not in left for part in names):
            raise ValueError(f"{where}: {shown(name)} is listed but not stored. {AGAIN}")
        where_, values = left.pop(names[0]), left.pop(names[-1], None)
        values = where_ if values is None else values
        if len(values.shape) != 1:
            raise fields.wrong("shape", f"one dimension of values, not {shown(values.shape)}")
        if form != "dense" and (where_.dtype != "U8" or len(where_.shape) != 1 or values.shape[0] > n):
            raise ValueError(
                f"{where}: {shown(name)} has {values.shape[0]} values for the shape {shown(shape)}. {AGAIN}"
            )
        expected = {"dense": n, "bitmap": -(-n // 8)}.get(form)
        if expected is not None and where_.shape != (expected,):
            raise fields.wrong("shape", f"that of {shown(where_.shape)} stored as {form}")
        sizes[name] = tuple(shape)
    if left:
        raise ValueError(f"{where}: {shown(sorted(left)[:3])} are stored but not listed. {AGAIN}")
    return sizes


def check_fit(
    sizes: Mapping[str, tuple[int, ...]], shapes: Mapping[str, torch.Size], path: str | os.PathLike[str], owner: str
) -> None:
    """Compare names and shapes with those of a model, of class `owner`.

    Raises:
        ValueError: they differ.
    """
    missing, unexpected = sorted(set(shapes) - set(sizes)), sorted(set(sizes) - set(shapes))
    if missing or unexpected:
        raise ValueError(
            f"{path} does not fit {owner}: it lacks {shown(missing[:3])} ({len(missing)} tensors) and holds "
            f"{shown(unexpected[:3])} ({len(unexpected)}) that the model does not have. Load it into the model that "
            "it was saved from."
        )
    for name, shape in sizes.items():
        if shape != tuple(shapes[name]):
            raise ValueError(
                f"{path}: {shown(name)} has shape {shown(shape)}, the model's has {tuple(shapes[name])}. Load it "
                "into the model that it was saved from."
            )


def check_expansion(sizes: Mapping[str, tuple[int, ...]], path: str | os.PathLike[str]) -> None:
    """Check that a file expands to at most FREE numbers, or EXPANSION for each of its bytes.

    Raises:
        ValueError: there are more.
    """
    numbers, length = sum(math.prod(shape) for shape in sizes.values()), os.path.getsize(path)
    if numbers > max(FREE, EXPANSION * length):
        raise ValueError(
            f"{path} claims {numbers} numbers in {length} bytes, expected at most {EXPANSION} in a byte: more than any "
            "pruned model needs. If you trust it, make the model and pass it: load_sparse(folder_or_id, model)."
        )


def _parsed(text: str, path: Path) -> dict[str, Any]:
    values = parse_json(text[:LARGEST_CONFIG].encode(), f"{path} is damaged: the config in it is not JSON")
    return Fields(values, f"{path} is damaged: the config in it").values


def maker(path: Path, cls: type[Any] | None) -> Callable[..., nn.Module]:
    """A function that makes the transformers model of a checkpoint, with any weights, on a device.

    Args:
        path: of the checkpoint; the config lies beside it.
        cls: of the model, or None for the class that the config names.

    Raises:
        FileNotFoundError: there is no config.
        ValueError: the config cannot be used; the function may raise it too.
    """
    import transformers

    file = path.parent / "config.json"
    inside = configs_inside(path.parent).get("config.json")
    with open_tensors(path) as tensors:
        most = max(MOST_LAYERS, len(tensors.keys()))
    if inside is None and not file.is_file():
        raise FileNotFoundError(
            f"No config.json in {str(path.parent)!r}: pass the module itself, load_sparse(folder_or_id, model)."
        )
    values = read_json(file, LARGEST_CONFIG) if inside is None else _parsed(inside, path)
    _check_counts(values, file, most)
    with errors_named(file):
        if inside is None:
            config = transformers.AutoConfig.from_pretrained(path.parent)
        else:
            config = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(values)
    if cls is None:
        names = getattr(config, "architectures", None)
        name = names[0] if isinstance(names, list) and names else names
        cls = getattr(transformers, name, None) if isinstance(name, str) else None
        if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
            raise ValueError(
                f"{file}: architectures={shown(name)} is not a class of transformers; pass the class or the "
                "module itself."
            )
    make = from_config(cls)

    def made(device: str = "cpu") -> nn.Module:
        with errors_named(file), torch.device(device):
            model: nn.Module = make(config).eval()
        return model

    return made


def _check_counts(values: Any, file: Path, most: int, inside: str = "") -> None:
    """Refuse counts of layers beyond the number of stored tensors: making such a model would not end."""
    for key, value in values.items() if isinstance(values, dict) else ((inside, value) for value in values):
        if key in ("label2id", "id2label"):
            continue  # its keys are free text
        if isinstance(value, (dict, list)):
            _check_counts(value, file, most, str(key))
        for words, limit in (("layer|block|depth|stage|expert|codebook", most), ("label", MOST_LABELS)):
            if is_whole(value) and value > limit and re.search(words, str(key)):
                raise ValueError(f"{file}: {shown(key)}={shown(value)} is out of range; expected at most {limit}.")
