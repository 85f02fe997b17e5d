"""Attention of one layer of a vision encoder, from the queries and keys that its attention function is given.

transformers lets every attention layer look its function up by the name in its config. While a layer is watched, its
config names a function that notes what it is given and calls the one that was named before. What it notes is right by
construction for every encoder that works this way: queries and keys come split and rotated, with mask and scale, image
by image where the encoder runs them so. The encoder keeps its fused attention, which returns no map, and nothing is
computed twice but the scores of one layer. Threads that run one encoder at once see each its own.
"""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from hf_efficient.compat.transformers import attention_function, attention_name, set_attention_name
from hf_efficient.representation.maths.importance import cls_attention, received_attention
from hf_efficient.shards import heads_split_over, mean_of_heads

PREFIX = "token_pruner_watched_"
SOURCES = ("cls", "received")
_WATCH: ContextVar[Watch | None] = ContextVar("attention_watch", default=None)
_LOCK = threading.Lock()
#: of every layer that is watched just now: by how many threads, and its config when it is not
_WATCHED: weakref.WeakKeyDictionary[nn.Module, tuple[int, Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Given:
    """What an attention function was given in one call.

    Args:
        queries: (B, H, N, d).
        keys: (B, H', N, d), H a multiple of H'.
        mask: in whatever form its implementation takes it.
        scale: of the dot product, None for 1/sqrt(d).
        bounds: (images + 1,) of images that stand in one row one after the other and see themselves alone, or None.
    """

    queries: Tensor
    keys: Tensor
    mask: Any
    scale: float | None
    bounds: Tensor | None

    def parts(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Queries and keys (B, H, n, d) and bias (as of `bias_of`) of what sees itself alone."""
        keys = self.keys.repeat_interleave(self.queries.shape[1] // self.keys.shape[1], dim=1)
        if self.bounds is None:
            return [(self.queries, keys, bias_of(self.mask, self.queries.shape[2]))]
        lengths = self.bounds.diff().tolist()
        return [(q, k, None) for q, k in zip(self.queries.split(lengths, 2), keys.split(lengths, 2), strict=True)]


class Watch:
    """While entered, notes what the attention function of one layer is given in this thread.

    Args:
        module: the attention layer, of those that `towers.attention_layers` finds.
        source: "cls" or "received", what `result` tells.
    """

    def __init__(self, module: nn.Module, source: str) -> None:
        self.module, self.source = module, source
        self.given: list[Given] = []

    def __enter__(self) -> Self:
        with _LOCK:
            count, stock = _WATCHED.get(self.module, (0, self.module.config))
            if not count:
                self.module.config = watching(stock)
            _WATCHED[self.module] = count + 1, stock
        self.token = _WATCH.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _WATCH.reset(self.token)
        with _LOCK:
            count, stock = _WATCHED.pop(self.module)
            if count > 1:
                _WATCHED[self.module] = count - 1, stock
            else:
                self.module.config = stock

    def note(self, given: Given, value: Tensor, rest: dict[str, Any]) -> None:
        """Take what the layer's attention function is given; `value` and `rest` are what it gets besides."""
        self.given.append(given)

    @torch.no_grad()
    def result(self) -> Tensor:
        """Importance of the encoder's tokens in float32, by the attention of [CLS] (token 0) or that received.

        (images, tokens); or (tokens of all images,) if the encoder looks at them one after the other, or in one row,
        and they have different sizes. Sums to 1 over every image; tokens that the encoder masks get 0. Empty if the
        layer was not called.
        """
        looks = [importance(*part, given.scale, self.source) for given in self.given for part in given.parts()]
        over = heads_split_over(self.module)
        if over is not None:
            heads = self.given[0].queries.shape[1] if self.given else 0
            looks = [mean_of_heads(look * heads, heads, over) for look in looks]
        if len({look.shape[1] for look in looks}) == 1:
            return torch.cat(looks)
        return torch.cat([look.flatten() for look in looks]) if looks else torch.zeros(0)


def importance(queries: Tensor, keys: Tensor, bias: Tensor | None, scale: float | None, source: str) -> Tensor:
    """(B, N) float32 of queries and keys (B, H, N, d) and a bias as of `bias_of`."""
    if source == "cls":
        return cls_attention(queries[:, :, 0], keys, scale, None if bias is None else bias[:, :, 0])
    if bias is None:
        return received_attention(queries, keys, scale)
    result = keys.new_zeros(keys.shape[0], keys.shape[2], dtype=torch.float32)
    for i, own in enumerate(bias.expand(len(keys), -1, -1, -1)):
        real = seen_keys(own)  # padding, which nothing sees, has no say
        own, q, k = own[:, real][:, :, real], queries[i : i + 1, :, real], keys[i : i + 1, :, real]
        result[i, real] = received_attention(q, k, scale, bias=own[None] if bool(own.any()) else None)[0]
    return result


def bias_of(mask: Any, n: int) -> Tensor | None:
    """What a mask adds to logits: (B or 1, H or 1, n, n) float32, -inf where a query does not see a key; None is 0.

    Args:
        mask: None; (B, n) of what is no padding; (B, H, n, n), bool or added; or a `BlockMask`.
        n: tokens.
    """
    if mask is None:
        return None
    if hasattr(mask, "mask_mod"):
        from torch.nn.attention.flex_attention import create_mask

        mask = create_mask(mask.mask_mod, mask.shape[0], mask.shape[1], n, n, mask.kv_num_blocks.device)
    if mask.dim() == 2:
        mask = mask.bool()[:, None, None].expand(-1, -1, n, -1)
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask.float().masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)


def seen_keys(bias: Tensor) -> Tensor:
    """(n,) bool: keys that some query sees, of a bias (heads, n, n)."""
    return (bias > -torch.inf).any(0).any(0)


def watching(config: Any) -> Any:
    """A config as this one, that names an attention which shows what it is given."""
    own = copy.copy(config)
    set_attention_name(own, watched_name(attention_name(config)))
    return own


@functools.cache
def watched_name(name: str | None) -> str:
    """The name of the attention of another name that shows what it is given."""
    AttentionInterface.register(f"{PREFIX}{name}", functools.partial(shown_attention, name))
    return f"{PREFIX}{name}"


def shown_attention(
    name: str | None, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    """Attention of a stock name, that shows this thread's watch of the layer what it is given."""
    watch = _WATCH.get()
    if watch is not None and watch.module is module:
        bounds = kwargs.get("cu_seq_lens_q")
        given = Given(query.detach(), key.detach(), attention_mask, kwargs.get("scaling"), bounds)
        watch.note(given, value, kwargs)
    stock: Any = attention_function(name, module)
    # flash attention reads the name in the module's config again
    caller = module if name in (None, "eager", "sdpa", "flex_attention") else Unwatched(module)
    return stock(caller, query, key, value, attention_mask, **kwargs)


class Unwatched:
    """A layer as it is when nobody watches it: with its own config, and all else of the layer."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.config = _WATCHED.get(module, (0, module.config))[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)
