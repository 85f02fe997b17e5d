"""Weights of a checkpoint, where the Trainer by itself does not find them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_efficient.reading import open_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # whole, or in several files


def load_weights(model: object, folder: str | os.PathLike[str]) -> bool:
    """Fill a model from a checkpoint that has its weights under other names than the model.

    `save_pretrained` writes some models (LLaVA among them) under the names of their first release. The Trainer looks
    for the names of today, finds none, and goes on with fresh weights and a warning.

    Args:
        model: that is trained.
        folder: of the checkpoint.

    Returns:
        Whether the model was filled; False where it is not a plain transformers model, or the names are its own.

    Raises:
        RuntimeError: tensors of the model are missing in the checkpoint.
        ValueError: the file is damaged.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    state = model.state_dict()
    if _names(Path(folder)) <= state.keys():
        return False
    double = any(tensor.dtype == torch.float64 for tensor in state.values())
    wide = torch.float64 if double else torch.float32  # which holds what 16 bits hold, to the bit
    loaded = type(model).from_pretrained(folder, dtype=wide)
    model.load_state_dict(loaded.state_dict())
    return True


def _names(folder: Path) -> set[str]:
    """Of the tensors in a checkpoint; empty where there are none."""
    if (folder / WEIGHTS).is_file():
        with open_tensors(folder / WEIGHTS) as file:
            return set(file.keys())
    if (folder / INDEX).is_file():
        return set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
    return set()
