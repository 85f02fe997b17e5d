"""Configs beside sparse weights are inside of these too, where they are read while a saving is not finished."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hf_efficient.reading import open_tensors

from . import locked, remove_file, write_text

FILE_NAME = "model.sparse.safetensors"
SAVING = f".{FILE_NAME}.saving"  # beside weights whose configs are not there yet


def configs_inside(folder: Path) -> dict[str, str]:
    """Names and contents of the configs that weights bring, where those beside them may be another's; else none.

    Raises:
        ValueError: the weights are no whole safetensors file.
    """
    if not (folder / SAVING).exists() or not (folder / FILE_NAME).is_file():
        return {}
    with open_tensors(folder / FILE_NAME) as file:
        metadata = file.metadata() or {}
    return {name: text for name, text in metadata.items() if re.fullmatch(r"\w*config\.json", name)}


def finish(folder: str | os.PathLike[str]) -> None:
    """Put the configs of the weights beside them, if a killed process has not: before one of them is replaced.

    Raises:
        BlockingIOError: another process is saving into the folder.
        OSError: no space is left.
    """
    target = Path(folder)
    if not (target / SAVING).exists():
        return
    with locked(target / FILE_NAME):
        for name, text in configs_inside(target).items():
            write_text(target / name, text)
        remove_file(target / SAVING)
