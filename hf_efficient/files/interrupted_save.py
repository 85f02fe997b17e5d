"""Sparse checkpoints after an interrupted save: the configs are read from inside the weights file.

`save_sparse` writes weights and configs one after the other; a marker says that the configs beside the weights may be
older. It is not in `sparsity`, since token pruners save their configs into the same folders.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hf_efficient.reading import open_tensors

from . import locked, remove_file, write_text

FILE_NAME = "model.sparse.safetensors"
MARKER = f".{FILE_NAME}.saving"  # exists until the configs are written too


def configs_inside(folder: Path) -> dict[str, str]:
    """Names and contents of the configs inside the weights, if saving was interrupted; else none.

    Raises:
        ValueError: the weights are not a complete safetensors file.
    """
    if not (folder / MARKER).exists() or not (folder / FILE_NAME).is_file():
        return {}
    with open_tensors(folder / FILE_NAME) as file:
        metadata = file.metadata() or {}
    return {name: text for name, text in metadata.items() if re.fullmatch(r"\w*config\.json", name)}


def finish_save(folder: str | os.PathLike[str]) -> None:
    """Write the configs beside the weights, if saving was interrupted; call it before one of them is replaced.

    Raises:
        BlockingIOError: another process is saving into the folder.
        OSError: no space is left.
    """
    target = Path(folder)
    if not (target / MARKER).exists():
        return
    with locked(target / FILE_NAME):
        for name, text in configs_inside(target).items():
            write_text(target / name, text)
        remove_file(target / MARKER)
