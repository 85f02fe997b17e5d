"""Caches that tell what they hold, and go on doing so when rows are reordered, picked, repeated, or cut off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.vlm.attached import Attached, attached_class

from .calls import Call

ON_CACHE = "_token_pruner_call"


def call_of(cache: Any) -> Call | None:
    """The call whose tokens a cache holds; None of an empty cache, and of one that no pruned model has filled."""
    if cache is None or not int(cache.get_seq_length()):
        return None
    found: Call | None = getattr(cache, ON_CACHE, None)
    return found


def keep_on(cache: Any, call: Call) -> None:
    """Let a cache tell what it holds. Where that is known row by row, it follows what is done to the rows."""
    if cache is None:
        return
    setattr(cache, ON_CACHE, call)
    known = any(part is not None for part in (call.log_mass, call.shift, call.drops))
    if known and not isinstance(cache, Followed):
        stock: Any = type(cache)
        cache.__class__ = attached_class(stock, Followed)


class Followed(Attached):
    """A cache, of whatever kind, whose call has the rows and the length of its keys."""

    layers: list[Any]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        stock: Any = super()
        rows = self._rows(len(beam_idx))
        stock.reorder_cache(beam_idx)
        self._pick(beam_idx, rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        stock: Any = super()
        rows = self._rows(len(indices))
        stock.batch_select_indices(indices)
        self._pick(indices, rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        stock: Any = super()
        rows = self._rows(1)
        stock.batch_repeat_interleave(repeats)
        self._pick(torch.arange(rows).repeat_interleave(repeats), rows)

    def crop(self, tokens_to_remove: int) -> None:
        stock: Any = super()
        call = getattr(self, ON_CACHE, None)
        if call is not None and call.drops is not None and tokens_to_remove < 0:
            call = call.going_on()
            call.drops = call.drops.first(int(self.get_seq_length()) + tokens_to_remove)  # type: ignore[attr-defined]
            setattr(self, ON_CACHE, call)
        stock.crop(tokens_to_remove)

    def _rows(self, otherwise: int) -> int:
        """Rows of the keys; a layer that keeps them in another form does not tell."""
        keys = (getattr(layer, "keys", None) for layer in self.layers)
        return next((len(k) for k in keys if isinstance(k, Tensor) and k.dim() == 4), otherwise)

    def _pick(self, indices: Tensor, rows: int) -> None:
        call = getattr(self, ON_CACHE, None)
        if call is not None:
            setattr(self, ON_CACHE, call.picked(indices, rows))
