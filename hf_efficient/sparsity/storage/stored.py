"""A model of transformers, however its weights are stored: whole, or sparsely by `save_sparse`."""

from __future__ import annotations

import os
from typing import Any

import torch

from hf_efficient.files import find, is_local
from hf_efficient.files.finding import HUB_ARGUMENTS
from hf_efficient.files.interrupted_save import FILE_NAME
from hf_efficient.reading import shown

from .checkpoint import load_sparse

WHOLE = ("model.safetensors", "model.safetensors.index.json")


def load_stored(cls: Any, folder_or_id: str | os.PathLike[str], **kwargs: Any) -> Any:
    """`cls.from_pretrained`, which reads what `save_sparse` wrote as well.

    Args:
        cls: of transformers, an Auto class or a model's own.
        folder_or_id: local, or on the Hub. Where weights lie there in both forms, the whole ones are read.
        kwargs: as of `from_pretrained`; of weights that are stored sparsely those about the Hub, `dtype`, `device_map`
            (one device, or "auto") and `attn_implementation`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: another argument is given for weights that are stored sparsely.
        OSError: the weights cannot be read.
    """
    hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS and value is not None}
    try:
        return cls.from_pretrained(folder_or_id, **kwargs)
    except OSError:
        if not stored_sparsely(folder_or_id, **hub):
            raise
    rest = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
    dtype, attention, place = (rest.pop(name, None) for name in ("dtype", "attn_implementation", "device_map"))
    if unknown := sorted(name for name, value in rest.items() if value is not None):
        raise ValueError(
            f"{', '.join(unknown)} cannot be given for {os.fspath(folder_or_id)!r}, whose weights are stored sparsely; "
            "leave them out, and change the loaded model."
        )
    device = _device(place)
    model: Any = load_sparse(folder_or_id, cls, **hub)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model.to(device, None if dtype in (None, "auto") else _dtype(dtype)).eval()


def stored_sparsely(folder_or_id: str | os.PathLike[str], **hub: Any) -> bool:
    """Whether weights are there in the form of `save_sparse`, and none as transformers reads them."""
    return _has(folder_or_id, FILE_NAME, hub) and not any(_has(folder_or_id, name, hub) for name in WHOLE)


def _has(folder_or_id: str | os.PathLike[str], name: str, hub: dict[str, Any]) -> bool:
    is_local(folder_or_id)  # raises if it is neither here nor on the Hub
    try:
        find(folder_or_id, name, "", **hub)
    except OSError:  # which the Hub's errors are
        return False
    return True


def _device(place: Any) -> Any:
    """The one device of a `device_map`."""
    if isinstance(place, dict) and set(place) == {""}:
        place = place[""]
    if place == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if place is None or isinstance(place, (str, int, torch.device)):
        return torch.device("cpu") if place is None else torch.device(place)
    raise ValueError(
        f"device_map={shown(place)} spreads weights that are stored sparsely over several devices; expected one device "
        "or 'auto'."
    )


def _dtype(dtype: Any) -> torch.dtype:
    """A dtype, also by its name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype={shown(dtype)} is not known; expected auto, float32, bfloat16 or float16.")
    return found
