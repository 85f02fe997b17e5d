"""What answers were measured with, as digests that are written beside them: names tell neither models nor configs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from hf_efficient import TokenPrunerConfig
from hf_efficient.files import is_local

DIGITS = 16
#: Files that decide what a model answers.
FILES = ("*.safetensors", "config.json", "generation_config.json", "*processor_config.json", "tokenizer*.json")


@cache
def model_digest(model: str) -> str:
    """First 16 digits of the SHA-256 of a model's weights, configuration, processor and tokenizer, read once a run.

    Args:
        model: its folder, or its id on the Hub.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no `*.safetensors`.
    """
    folder = Path(model) if is_local(model) else Path(snapshot_download(model, allow_patterns=list(FILES)))
    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise FileNotFoundError(f"No *.safetensors in {model!r}; expected a folder saved by save_pretrained.")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:DIGITS]


def labels_of(models: Sequence[str]) -> list[str]:
    """A name for each folder: its last part, numbered where that has come before (training calls all "model")."""
    names = [Path(folder).name for folder in models]
    return [name if name not in names[:i] else f"{name} {i}" for i, name in enumerate(names)]


def models_of(models: Sequence[str]) -> dict[str, str]:
    """Label -> digest of each model."""
    return dict(zip(labels_of(models), map(model_digest, models), strict=True))


def saved_rows(rows: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """Name -> digest of the rows that come from a saved config, whose folder's name is all that the row's name says.

    Their settings have a key "generator"; its weights count. What is as it comes does not, as a field may be added.
    """
    found, usual = {}, TokenPrunerConfig().to_dict()
    for name, settings in rows.items():
        if settings is not None and "generator" in settings:
            said = {key: value for key, value in settings.items() if key not in ("generator", "budget")}
            plain, generator = {k: v for k, v in said.items() if v != usual[k]}, settings["generator"]
            content = json.dumps(plain, sort_keys=True).encode() + (b"" if generator is None else generator.to_bytes())
            found[name] = hashlib.sha256(content).hexdigest()[:DIGITS]
    return found


def made_with(models: Mapping[str, str], rows: Mapping[str, Mapping[str, Any] | None] | None = None) -> dict[str, str]:
    """What a book compares beside its scenes: models by label, and rows of saved configs."""
    saved = {f"row {name!r}": digest for name, digest in saved_rows(rows or {}).items()}
    return {**{f"model {label!r}": digest for label, digest in models.items()}, **saved}
