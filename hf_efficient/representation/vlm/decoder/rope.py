"""Positions of prompts, along one axis and along the three of M-RoPE, as the stock models count them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor


def text_positions(mask: Tensor) -> Tensor:
    """(B, L) positions without gaps, 0 for padding."""
    mask = mask.long()
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)


def rope_index(base: Any, ids: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Positions (3, B, L) and `rope_deltas` (B, 1) of an unpruned prompt with M-RoPE, as the stock model has them.

    None where the stock model would count along one axis: a prompt without types of tokens, or without grids.
    """
    grids = any(name.endswith("_grid_thw") and value is not None for name, value in arguments.items())
    if not grids or arguments.get("mm_token_type_ids") is None:
        return None
    names = [name for name in inspect.signature(base.get_rope_index).parameters if name != "kwargs"]
    asked = {name: arguments[name] for name in names if arguments.get(name) is not None}
    positions, deltas = base.get_rope_index(**{**asked, "input_ids": ids})
    return positions, deltas
