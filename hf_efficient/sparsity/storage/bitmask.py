"""Old `sparse-bitmask` checkpoints of compressed-tensors (llm-compressor, SparseML), rewritten as plain ones.

A pruned weight `P.weight` is stored there as `P.shape` (its dimensions), `P.bitmask` (a bit for each entry, lowest bit
first, rows padded to whole bytes), `P.compressed` (the values of set bits, row by row) and, in the unstructured format,
`P.row_offsets` (how many values stand before each row). Nothing is trusted: each part is compared with the others.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_efficient.files import check_output, copy_file, folder_written_whole, is_local, write_text, written_whole
from hf_efficient.reading import AGAIN, FLOATS, Fields, Stored, open_tensors, read_json, shown, stored_in

from .checkpoint_checks import LARGEST_CONFIG
from .mask_encoding import unpack

FORMATS = ("sparse-bitmask", "sparse-24-bitmask")
PARTS = ("shape", "bitmask", "compressed", "row_offsets")
SECTIONS = ("quantization_config", "compression_config", "sparsity_config")  # of a config, the last in the oldest files
INDEX = "model.safetensors.index.json"
#: Files that belong to a model beside its weights; code and pickles are left behind.
OTHERS = r"[\w.-]+\.(json|txt|model|jinja)"
LARGEST_INDEX = 1 << 26


def convert_bitmask(folder_or_id: str | os.PathLike[str], output: str | os.PathLike[str], **hub_kwargs: Any) -> Path:
    """Rewrite a `sparse-bitmask` or `sparse-24-bitmask` checkpoint as a plain one with zeros.

    Current transformers, compressed-tensors (from 0.15) and vLLM refuse such files. The result is what
    `from_pretrained` of any version loads; `keep_sparsity` then fine-tunes it. One file of weights is in memory at a
    time.

    Args:
        folder_or_id: local folder, or id of a Hub repository.
        output: a new or empty folder.
        hub_kwargs: passed to `huggingface_hub.snapshot_download` (`revision`, `token`, ...).

    Returns:
        The output: the same files of weights, an index, the config without its compression, tokenizer and other texts.

    Raises:
        FileNotFoundError: there is no such folder, or no config or weights in it.
        FileExistsError: the output holds something, or is not a folder.
        ValueError: the output is the input, the model is not of these formats or quantized as well, or a file is
            damaged or hostile.
    """
    folder = Path(folder_or_id) if is_local(folder_or_id) else _fetched(str(folder_or_id), hub_kwargs)
    check_output(output, "folder", [folder])
    config = _plain_config(folder)
    weights = _weight_files(folder)
    headers = {path: _header(path) for path in weights}
    where = {name: path for path, header in headers.items() for name in header}
    with folder_written_whole(output) as draft:
        names: dict[str, str] = {}
        found, size = 0, 0
        for path, header in headers.items():
            tensors: dict[str, Tensor] = {}
            for name, tensor in _plain(path, header, where, headers):
                if name in names or name in tensors:
                    raise ValueError(f"{path}: {shown(name)} is stored twice. {AGAIN}")
                found += name not in header
                tensors[name] = tensor
                size += tensor.nbytes
            names |= dict.fromkeys(tensors, path.name)
            with written_whole(draft / path.name) as file:
                save_file(tensors, file, metadata={"format": "pt"})
            del tensors
        if not found:
            raise ValueError(f"{folder}: its config names a bitmask format, but no weight is stored so. {AGAIN}")
        if len(weights) > 1:
            index = {"metadata": {"total_size": size}, "weight_map": names}
            write_text(draft / INDEX, json.dumps(index, indent=2, sort_keys=True))
        write_text(draft / "config.json", json.dumps(config, indent=2, sort_keys=True))
        for file in sorted(folder.iterdir()):
            if file.is_file() and re.fullmatch(OTHERS, file.name) and file.name not in (INDEX, "config.json"):
                copy_file(file, draft / file.name)
    return Path(output)


def _fetched(repository: str, hub_kwargs: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    return Path(snapshot_download(repository, allow_patterns=patterns, **hub_kwargs))


def _plain_config(folder: Path) -> dict[str, Any]:
    """The model's config without what it says of compression, which is checked."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"No config.json in {str(folder)!r}: expected the folder of a compressed model.")
    config = read_json(path, LARGEST_CONFIG)
    kinds, groups = [], []
    for name in SECTIONS:
        section = config.pop(name, None)
        if section is None:
            continue
        section = Fields(section, f"{path}: {name}").values
        inner = section if name == "sparsity_config" else section.get("sparsity_config") or {}
        kinds.append(Fields(inner, f"{path}: sparsity_config").values.get("format"))
        groups.append(section.get("config_groups"))
    if any(groups):
        raise ValueError(
            f"{path}: the model is quantized as well (config_groups), and its codes cannot be written as a plain model "
            "here. Load it with a compressed-tensors below 0.15, or take the checkpoint that is not quantized."
        )
    if not any(kind in FORMATS for kind in kinds):
        raise ValueError(
            f"{path}: the format of sparsity is {shown(kinds[0] if kinds else None)}, expected one of "
            f"{', '.join(map(repr, FORMATS))}. A plain or dense checkpoint needs no conversion: load it with "
            "from_pretrained."
        )
    return config


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        files = [folder / "model.safetensors"]
    else:
        fields = Fields(read_json(index, LARGEST_INDEX), str(index))
        names = set(map(str, fields.fields("weight_map").values.values()))
        for name in names:
            if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
                raise ValueError(f"{index}: {shown(name)} is not the name of a file of weights. {AGAIN}")
        files = [folder / name for name in sorted(names)]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"No {file.name} in {str(folder)!r}: expected the weights of a compressed model.")
    return files


def _header(path: Path) -> dict[str, Stored]:
    with open_tensors(path) as file:
        return stored_in(file)


class _Parts(NamedTuple):
    """The tensors of a compressed weight; `row_offsets` may be absent."""

    shape: Tensor
    bitmask: Tensor
    compressed: Tensor
    row_offsets: Tensor | None


def _plain(
    path: Path, header: Mapping[str, Stored], where: Mapping[str, Path], headers: Mapping[Path, Mapping[str, Stored]]
) -> Iterator[tuple[str, Tensor]]:
    """Name and dense tensor of everything in a file; of a compressed weight, where its bitmask lies."""
    with open_tensors(path) as file:
        for name, stored in header.items():
            prefix, _, part = name.rpartition(".")
            if part == "bitmask":
                plain = prefix if prefix.endswith(".weight") else f"{prefix}.weight"
                if plain in where:
                    raise ValueError(f"{path}: {shown(plain)} is stored plain and as a bitmask. {AGAIN}")
                yield plain, _decompress(_parts(prefix, where, headers), f"{path}: {shown(prefix)}")
            elif part not in PARTS or f"{prefix}.bitmask" not in where:
                if part in ("compressed", "row_offsets"):
                    raise ValueError(f"{path}: {shown(name)} has no bitmask beside it. {AGAIN}")
                if stored.dtype not in FLOATS and part.startswith("weight"):
                    raise ValueError(f"{path}: {shown(name)} is {stored.dtype}, a quantized weight; expected floats.")
                yield name, file.get_tensor(name)


def _parts(prefix: str, where: Mapping[str, Path], headers: Mapping[Path, Mapping[str, Stored]]) -> _Parts:
    """Read the parts of a weight, whose dtypes and dimensions are compared first."""
    found: dict[str, Tensor] = {}
    for part in PARTS:
        name = f"{prefix}.{part}"
        if name not in where:
            if part == "row_offsets":
                continue
            raise ValueError(f"{where[f'{prefix}.bitmask']}: {shown(name)} is missing. {AGAIN}")
        path = where[name]
        stored = headers[path][name]
        dtypes = {"bitmask": ("U8",), "compressed": FLOATS}.get(part, ("I64", "I32"))
        if stored.dtype not in dtypes or (part == "shape" and math.prod(stored.shape) > 8):
            raise ValueError(
                f"{path}: {shown(name)} is {stored.dtype} {shown(stored.shape)}, expected {' or '.join(dtypes)}"
                f"{' of at most 8 numbers' if part == 'shape' else ''}. Quantized weights are not read."
            )
        with open_tensors(path) as file:
            found[part] = file.get_tensor(name)
    return _Parts(found["shape"], found["bitmask"], found["compressed"], found.get("row_offsets"))


def _decompress(parts: _Parts, where: str) -> Tensor:
    """The dense weight.

    Raises:
        ValueError: the parts disagree; the message begins with `where`.
    """
    shape = [int(s) for s in parts.shape.flatten()]
    if not shape or any(not 0 <= s < 2**40 for s in shape):
        raise ValueError(f"{where}: shape={shown(shape)} is out of range; expected numbers from 0 to 2^40. {AGAIN}")
    *rows, columns = shape
    width = -(-columns // 8)
    if tuple(parts.bitmask.shape) != (*rows, width):
        raise ValueError(
            f"{where}: the bitmask is {shown(tuple(parts.bitmask.shape))}, expected {shown((*rows, width))} for the "
            f"shape {shown(shape)}. {AGAIN}"
        )
    bits = unpack(parts.bitmask.flatten(), parts.bitmask.numel() * 8).view(-1, width * 8)
    if bool(bits[:, columns:].any()):
        raise ValueError(f"{where}: the bitmask has bits set after the last entry of a row. {AGAIN}")
    mask = bits[:, :columns].reshape(shape)
    values = parts.compressed.flatten()
    if int(mask.sum()) != values.numel():
        raise ValueError(f"{where}: there are {values.numel()} values for {int(mask.sum())} set bits. {AGAIN}")
    counts = mask.sum(-1)
    offsets = parts.row_offsets
    if offsets is not None and not torch.equal(offsets.long(), counts.cumsum(0) - counts):
        raise ValueError(f"{where}: row_offsets do not count the set bits of the rows before. {AGAIN}")
    return torch.zeros(shape, dtype=values.dtype).masked_scatter_(mask, values)
