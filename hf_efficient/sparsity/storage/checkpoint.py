"""Sparse checkpoints: masks and nonzero values in an ordinary safetensors file.

A tensor `w` that is smaller this way is stored as `w:values` and either `w:bitmap` (a bit per entry) or `w:gaps` (a
byte per nonzero entry); all others as they are. Shapes, dtypes and a checksum of every stored tensor are in the file's
metadata. Nothing is trusted: everything is compared with the file's header and with the model to be filled, before any
memory is allocated.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_efficient.checks import check_model, checked_path
from hf_efficient.compat.torch import coded_by_torchao, storage_id
from hf_efficient.files import find, locked, make_folder, remove_file, scratch_folder, write_text, written_whole
from hf_efficient.files.interrupted_save import FILE_NAME, MARKER
from hf_efficient.reading import AGAIN, open_tensors, parse_json, shown, stored_in
from hf_efficient.sparsity.csr.compress import compress
from hf_efficient.sparsity.csr.linear import CSRLinear
from hf_efficient.sparsity.csr.semi_structured import dense_of
from hf_efficient.wrapped import pruner_below, unwrapped

from . import card, mask_encoding
from .checkpoint_checks import check_expansion, check_fit, check_layout, maker, tensors_of

FORMAT = "hf_efficient.sparse.1"
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save_sparse(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write a model with zeros to a small file.

    At fp32 and density d a weight takes 4 d + min(d, 1/8) bytes, or little more. The loaded model equals the saved one,
    bit for bit but for the sign of zeros (multiplying by a mask leaves minus zeros). The config of a transformers model
    is written beside the file, that of an attached token pruner, and a model card. If saving is interrupted,
    `load_sparse` finds the old model or the new one.

    Args:
        model: a plain model (merge adapters first), compressed or not. Of a compiled or parallel model the inner one is
            saved.
        folder: created if absent.

    Returns:
        The path of the file.

    Raises:
        TypeError: `model` is no model, or `folder` no path.
        ValueError: `model` has adapters, is quantized, has weights that are not loaded, or names that cannot be stored;
            or `folder` is a file.
        BlockingIOError: another process is saving into the folder.
        OSError: no space is left, or no permission; the old files are kept.
    """
    model, target = _plain(model), checked_path("folder", folder)
    if target.is_file():
        raise ValueError(f"save_sparse needs a folder, got the file {str(target)!r}.")
    make_folder(target)
    tensors, layout = encode(dense_state_dict(model))
    pruner, marker = pruner_below(model), target / MARKER
    alone: AbstractContextManager[dict[str, str]] = nullcontext({})
    with locked(target / FILE_NAME), alone if pruner is None else pruner.config.replaced(target) as configs:
        configs = _configs(model, target) | configs
        metadata = {"format": "pt", "sparse_format": FORMAT, "layout": json.dumps(layout, sort_keys=True), **configs}
        before = _stamp(target / FILE_NAME)
        write_text(marker, "the configs here may belong to other weights: use those inside the checkpoint\n")
        try:
            with written_whole(target / FILE_NAME) as draft:
                save_file(tensors, draft, metadata=metadata)
            for name, text in configs.items():
                write_text(target / name, text)
        except BaseException:
            if _stamp(target / FILE_NAME) == before:
                remove_file(marker)
            raise
        remove_file(marker)
        card.write(target, model, _zeros(model))
    return target / FILE_NAME


def _plain(model: nn.Module) -> nn.Module:
    """The model that is saved: inside what wraps it, and of numbers."""
    check_model(model)
    inside = unwrapped(model)
    if hasattr(model, "merge_and_unload") or any(hasattr(module, "adapter_layer_names") for module in inside.modules()):
        raise ValueError("save_sparse takes a plain model; merge the adapter first: model = model.merge_and_unload().")
    named = getattr(getattr(inside, "config", None), "quantization_config", None) is not None
    if named or any(map(coded_by_torchao, inside.parameters())):
        raise ValueError(
            "save_sparse stores weights with zeros, and this model's are quantized to codes. Save it by "
            "save_pretrained(folder), or save the model before it is quantized."
        )
    tensors_of(inside)
    return inside


def _configs(model: Any, target: Path) -> dict[str, str]:
    """Names and contents of a transformers model's config files."""
    with scratch_folder(target / "configs") as folder:
        configs: list[Any] = [getattr(model, "config", None), getattr(model, "generation_config", None)]
        for config in configs:
            if hasattr(config, "save_pretrained"):
                if getattr(config, "architectures", 0) is None:
                    config.architectures = [type(model).__name__]
                config.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*config.json"))}


def _zeros(model: nn.Module) -> float:
    """The share of zeros among a model's values."""
    state = [tensor for tensor in dense_state_dict(model).values() if not tensor.is_meta]
    return 1 - sum(int(t.ne(0).sum()) for t in state) / max(sum(t.numel() for t in state), 1)


def _stamp(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def load_sparse(
    folder_or_id: str | os.PathLike[str],
    model: nn.Module | type[Any] | None = None,
    *,
    compressed: bool = False,
    **hub_kwargs: Any,
) -> nn.Module:
    """Load what `save_sparse` wrote. No code runs except that of transformers or of the given model.

    Args:
        folder_or_id: folder, file, or id of a Hub repository.
        model: a module, which is filled in place; a transformers class (`AutoModelForCausalLM`, ...); or None for the
            class that the folder's config names.
        compressed: replace linear layers by sparse ones where that is faster (see `compress`).
        hub_kwargs: passed to `huggingface_hub.hf_hub_download` (`revision`, `token`, ...).

    Returns:
        The model, dense unless `compressed`; `.save_pretrained(folder)` then writes what plain transformers loads.

    Raises:
        TypeError: `folder_or_id` is no path.
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or hostile, or does not fit the model.
    """
    checked_path("folder_or_id", folder_or_id)
    path = _locate(folder_or_id, hub_kwargs)
    make = None if isinstance(model, nn.Module) else maker(path, model)
    if isinstance(model, nn.Module) and any(tensor.is_meta for tensor in tensors_of(model).values()):
        raise ValueError("The model is on the device 'meta', where no weights can be loaded: pass its class instead.")
    owner: Any = model if make is None else make("meta")  # no memory is allocated before the file is known to fit
    shapes = {name: tensor.shape for name, tensor in dense_state_dict(owner).items()}
    state = read_sparse(path, shapes, type(owner).__name__, limited=make is not None)
    model = owner if make is None else make()
    model.load_state_dict(state, strict=False)  # tied tensors are stored once
    return compress(model) if compressed else model


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict as it would be without `compress`; of tied tensors, the first name only.

    Raises:
        ValueError: it holds something else than tensors of numbers.
    """
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, int, torch.Size]] = set()
    for name, stored in tensors_of(model).items():
        tensor = dense_of(stored)
        where = (storage_id(tensor), int(tensor.storage_offset()), tensor.shape)
        if tensor.numel() and where in seen:
            continue
        seen.add(where)
        state[name] = tensor.detach()
    for prefix, layer in model.named_modules():
        if isinstance(layer, CSRLinear):
            for name in ("starts", "columns", "values"):
                del state[f"{prefix}.{name}"]
            state[f"{prefix}.weight"] = layer.matrix().to_dense()
    return state


def encode(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors to store, and what the metadata says of them: name -> {dtype, shape, crc, form}."""
    tensors: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"{shown(name)} is not loaded (device 'meta'): load the model without offloading.")
        if name == "__metadata__" or re.search(r":(bitmap|gaps|values)$", name):
            raise ValueError(f"{shown(name)} is reserved for the file format; give that weight another name.")
        flat = tensor.cpu().contiguous().flatten()
        mask = flat.ne(0)
        values = flat[mask].clone()
        bitmap, gaps = mask_encoding.pack(mask), mask_encoding.to_gaps(mask)
        form = "gaps" if len(gaps) < len(bitmap) else "bitmap"
        where = gaps if form == "gaps" else bitmap
        if len(where) + values.nbytes < flat.nbytes:
            stored = {f"{name}:{form}": where, f"{name}:values": values}
        else:
            copied = flat.clone(memory_format=torch.contiguous_format)  # a single number may have any stride
            form, stored = "dense", {name: copied}
        tensors |= stored
        layout[name] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "crc": _crc(stored.values()),
            "form": form,
        }
    return tensors, layout


def read_sparse(
    path: str | os.PathLike[str],
    shapes: Mapping[str, torch.Size] | None = None,
    owner: str = "the model",
    limited: bool = True,
) -> dict[str, Tensor]:
    """The dense state dict of a file that `save_sparse` wrote, every tensor checked.

    Args:
        path: of the file.
        shapes: name -> shape of the tensors that it must hold; None: any.
        owner: class of the model that they belong to, for messages.
        limited: refuse a file that expands to more numbers than its length allows. Zeros cost no bytes, so that a few
            bytes can claim any size; a model of the caller's own needs no limit.

    Raises:
        ValueError: it is not as `save_sparse` writes it, or it does not fit the model.
    """
    with open_tensors(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("sparse_format") != FORMAT:
            raise ValueError(
                f"{path} has sparse_format={shown(metadata.get('sparse_format'))}, expected {FORMAT!r}: it was not "
                "written by save_sparse, or by a newer version. Load plain checkpoints with from_pretrained."
            )
        layout = parse_json(metadata.get("layout", "").encode(), f"{path} is damaged: its layout is not JSON")
        sizes = check_layout(stored_in(file), layout, f"{path} is damaged")
        if shapes is not None:
            check_fit(sizes, shapes, path, owner)
        if limited:
            check_expansion(sizes, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    try:
        return decode(tensors, layout)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. {AGAIN}") from error


def decode(tensors: dict[str, Tensor], layout: dict[str, Any]) -> dict[str, Tensor]:
    """Inverse of `encode`, for a layout that `check_layout` has passed.

    Raises:
        ValueError: a checksum or dtype is wrong, or mask and values disagree.
    """
    state: dict[str, Tensor] = {}
    for name, entry in layout.items():
        shape, form = entry["shape"], entry["form"]
        names = [name] if form == "dense" else [f"{name}:{form}", f"{name}:values"]
        stored = [tensors[n] for n in names]
        if _crc(stored) != entry["crc"]:
            raise ValueError(f"{shown(name)} has another checksum than when it was saved")
        n, values = math.prod(shape), stored[-1]
        if str(values.dtype) != f"torch.{entry['dtype']}":
            raise ValueError(f"{shown(name)} is {values.dtype}, expected {entry['dtype']}")
        if form == "dense":
            state[name] = values.view(shape)
            continue
        mask = (mask_encoding.unpack if form == "bitmap" else mask_encoding.from_gaps)(stored[0], n)
        if int(mask.sum()) != values.numel():
            raise ValueError(f"{shown(name)} has {values.numel()} values for {int(mask.sum())} active weights")
        raw = values.view(_SAME_SIZE[values.itemsize])  # not every dtype can be scattered
        state[name] = torch.zeros(n, dtype=raw.dtype).masked_scatter_(mask, raw).view(values.dtype).view(shape)
    return state


def _crc(tensors: Any) -> int:
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.view(torch.uint8).numpy() if tensor.numel() else b"", crc)
    return crc


def _locate(folder_or_id: str | os.PathLike[str], hub_kwargs: dict[str, Any]) -> Path:
    path = Path(folder_or_id)
    if path.is_file():
        return path
    if not path.is_dir():  # on the Hub: fetch the model's config beside the weights
        find(folder_or_id, "config.json", "", **hub_kwargs)
    return Path(find(folder_or_id, FILE_NAME, "expected a folder that save_sparse wrote.", **hub_kwargs))
