"""Positions of a call's tokens: those they would have in the unpruned prompt, asked of the stock model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.compat.transformers import cache_of
from hf_efficient.representation.vlm.kept import KeptUnit
from hf_efficient.representation.vlm.prompt import Prompt, restore

from .calls import Call
from .rope import rope_index, sizes_of

Kept = dict[str, list[KeptUnit]]


def visible_ids(base: Any, arguments: dict[str, Any]) -> Tensor:
    """The ids (B, L) of a forward call; of one with embeddings in their place those of its placeholders, others are -1.

    Placeholders are recognized by their embedding, as in the stock models.
    """
    ids: Tensor | None = arguments.get("input_ids")
    if ids is not None:
        return ids
    embeds: Tensor = arguments["inputs_embeds"]
    ids = torch.full(embeds.shape[:2], -1, dtype=torch.long, device=embeds.device)
    for token in base.token_pruner.family.tokens(base.config).values():
        looks = base.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        ids = ids.masked_fill((embeds == looks).all(-1), token)
    return ids


def mrope_positions(base: Any, ids: Tensor, arguments: dict[str, Any], kept: Kept) -> tuple[Tensor, Tensor] | None:
    """Positions (3, B, L) of a pruned prompt with M-RoPE, and how far they run ahead of the tokens, (B, 1).

    None where the stock model counts along one axis.
    """
    types = arguments.get("mm_token_type_ids")
    full = restore(Prompt.of(base, base.token_pruner.family, ids, arguments.get("attention_mask")), kept, types)
    found = rope_index(base, full.ids, {**arguments, "mm_token_type_ids": full.types, "attention_mask": full.mask})
    return None if found is None else (full.gather(found[0]), found[1] + full.dropped[:, None])


def going_on(ids: Tensor, mask: Any, past: int, shift: Tensor) -> Tensor:
    """Positions (B, L) of ids behind `past` tokens in the cache, `shift` (B, 1) ahead of their number."""
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == past + ids.shape[1]:
        positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)[:, past:]
    else:
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
    rows = ids.shape[0] // len(shift)
    return positions + shift.repeat_interleave(rows, dim=0).to(ids.device)


def number(base: Any, arguments: dict[str, Any], kept: Kept, past: int, call: Call) -> None:
    """Give a forward call the positions of the unpruned prompt, in place, and note what later calls need of them."""
    if arguments.get("position_ids") is None and (kept or arguments.get("input_ids") is not None):
        ids = visible_ids(base, arguments)
        if base.token_pruner.family.mrope:
            _number_axes(base, ids, arguments, kept, past, call)
        else:
            _number(base, ids, arguments, kept, past, call)
    positions = arguments.get("position_ids")
    bare = arguments.get("attention_mask") is None and cache_of(arguments) is None
    if not kept or positions is None or not bare or base.token_pruner.family.mrope:
        return
    if not bool((positions.diff(dim=-1) <= 0).any()):
        # without mask and cache, transformers takes gaps for borders between packed sequences
        arguments["attention_mask"] = torch.ones(positions.shape, dtype=torch.long, device=positions.device)


def _number(base: Any, ids: Tensor, arguments: dict[str, Any], kept: Kept, past: int, call: Call) -> None:
    """`number` along one axis."""
    if past and call.shift is not None:
        arguments["position_ids"] = torch.arange(ids.shape[1], device=ids.device) + past + call.shift
    elif kept and not past:
        full = restore(Prompt.of(base, base.token_pruner.family, ids, arguments.get("attention_mask")), kept)
        call.shift = full.dropped[:, None]
        every = torch.arange(full.ids.shape[1], device=ids.device) + base.token_pruner.family.first_position
        arguments["position_ids"] = full.gather(every[None])


def _number_axes(base: Any, ids: Tensor, arguments: dict[str, Any], kept: Kept, past: int, call: Call) -> None:
    """`number` along the axes of M-RoPE."""
    if past and call.shift is not None:
        positions = going_on(ids, arguments.get("attention_mask"), past, call.shift)
        arguments["position_ids"] = positions.expand(3, *ids.shape)
    elif kept and not past:
        found = mrope_positions(base, ids, arguments, kept)
        if found is not None:
            arguments["position_ids"], call.shift = found
    elif not past and not sizes_of(arguments):
        call.shift = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
