"""What differs between model families: one short file each, and this table.

To support another family, write `families/<name>.py` with a `Family` subclass called `FAMILY`, and add one line below.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .family import Family

# config.model_type -> module of this folder
FAMILIES = {
    "llava": "llava",
    "llava_next": "llava_next",
    "llava_onevision": "llava_onevision",
    "video_llava": "video_llava",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "smolvlm": "smolvlm",
    "idefics3": "idefics3",
    "paligemma": "paligemma",
    "gemma3": "gemma3",
    "internvl": "internvl",
}


def family_of(model: Any) -> Family:
    """The family of a stock vision-language model.

    Raises:
        ValueError: the model has no `config.model_type` listed in FAMILIES.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES:
        raise ValueError(
            f"Token pruning does not support {type(model).__name__} (model_type={kind!r}); supported are: "
            f"{', '.join(FAMILIES)}. docs/families.md says how to add a family."
        )
    module = import_module(f"{__name__}.{FAMILIES[kind]}")
    family: Family = module.FAMILY
    return family
