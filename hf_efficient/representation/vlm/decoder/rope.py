"""Positions of prompts, along one axis and along the three of M-RoPE, as the stock models count them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor


def text_positions(mask: Tensor) -> Tensor:
    """(B, L) positions without gaps, 0 for padding."""
    mask = mask.long()
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)


def sizes_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a call says of the sizes of its pictures: grids, or in the words of MiniCPM-V target sizes."""
    names = [name for name in arguments if name.endswith("_grid_thw") or name.startswith("target_sizes")]
    return {name: arguments[name] for name in names if arguments[name] is not None}


def rope_index(base: Any, ids: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Positions (3, B, L) and `rope_deltas` (B, 1) of an unpruned prompt with M-RoPE, as the stock model has them.

    None where the stock model would count along one axis: a prompt without sizes of pictures, or without types of
    tokens where it asks for them.
    """
    names = [name for name in inspect.signature(base.get_rope_index).parameters if name != "kwargs"]
    if not sizes_of(arguments) or ("mm_token_type_ids" in names and arguments.get("mm_token_type_ids") is None):
        return None
    known = {**arguments, "second_per_grids": arguments.get("video_second_per_grid")}
    if (heard := arguments.get("feature_attention_mask")) is not None:
        known["audio_seqlens"] = heard.sum(1)
    asked = {name: known[name] for name in names if known.get(name) is not None}
    positions, deltas = base.get_rope_index(**{**asked, "input_ids": ids})
    return positions, deltas
