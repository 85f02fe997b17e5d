"""What differs between model families: a short file each, and a row of `hf_efficient.methods.FAMILIES`."""

from __future__ import annotations

from typing import Any

from hf_efficient.methods import FAMILIES

from .family import Family


def family_of(model: Any) -> Family:
    """The family of a stock vision-language model.

    Raises:
        ValueError: the model has no `config.model_type` of the table.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in FAMILIES.names:
        raise ValueError(
            f"Token pruning does not support {type(model).__name__} (model_type={model_type!r}); supported are: "
            f"{', '.join(FAMILIES.names)}. docs/adding.md says how to add a family."
        )
    family: Family = FAMILIES.row(model_type).implementation
    return family
