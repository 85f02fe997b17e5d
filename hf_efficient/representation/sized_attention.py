"""Size-aware attention: a token that stands for n tokens counts as n in the softmax of the language model.

    logits_qk += log n_k

which is, for tokens at the same position, exactly what n copies of token k would do (proportional attention of ToMe,
Bolya et al., ICLR 2023). The bias goes into the mask that transformers makes once per call, for all layers, caches and
windows; attention itself runs as with sdpa. The vision encoder is left alone.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from .inputs import Prompt
from .kept import KeptUnit

PREFIX = "token_pruner_"
SUPPORTED = ("sdpa", "eager")


class TokenSizes:
    """Log-masses of the prompt in a language model's cache, of its configs looked up by those who make masks.

    Attributes:
        log_mass: (B, P) float32, 0 for text; None where every token counts once. Keys beyond P count once.
    """

    def __init__(self) -> None:
        self.log_mass: Tensor | None = None


_SIZES: dict[int, TokenSizes] = {}  # by id of the config, since configs have no hash


@torch.compiler.disable
def sizes_of(config: Any) -> TokenSizes:
    """The sizes of a language model, by its (text) config."""
    if id(config) not in _SIZES:
        weakref.finalize(config, _SIZES.pop, id(config), None)
        _SIZES[id(config)] = TokenSizes()
    return _SIZES[id(config)]


def size_aware_mask(*, batch_size: int, kv_length: int, kv_offset: int = 0, config: Any, **kwargs: Any) -> Any:
    """The mask of transformers with log-masses on its columns: (B, 1, Q, KV) float; sdpa's where there are none."""
    log_mass = sizes_of(config).log_mass
    arguments = {"batch_size": batch_size, "kv_length": kv_length, "kv_offset": kv_offset, "config": config, **kwargs}
    if log_mass is None:
        return sdpa_mask(**arguments)
    return add_log_mass(eager_mask(**arguments), log_mass, kv_offset)


def add_log_mass(mask: Tensor, log_mass: Tensor, kv_offset: Any = 0) -> Tensor:
    """A float mask (B, 1, Q, KV), whose columns are keys from `kv_offset` on, with log-masses (b, P) added.

    B may be a multiple of b: beams of one prompt stand together.
    """
    columns = F.pad(log_mass, (0, max(0, int(kv_offset) + mask.shape[-1] - log_mass.shape[1])))
    columns = columns[:, int(kv_offset) : int(kv_offset) + mask.shape[-1]]
    columns = columns.repeat_interleave(mask.shape[0] // len(columns), dim=0) if mask.shape[0] > 1 else columns
    columns = columns.to(mask.device, mask.dtype)[:, None, None]
    return torch.where(mask > torch.finfo(mask.dtype).min / 2, mask + columns, mask)


def watched_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """sdpa; a layer whose attention is asked for shows its queries and keys on the way."""
    watch = getattr(module, "attention_watch", None)
    if watch is not None:
        watch(module, query, key, attention_mask, kwargs.get("scaling"))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


for _name in SUPPORTED:
    AttentionInterface.register(PREFIX + _name, watched_attention)
    AttentionMaskInterface.register(PREFIX + _name, size_aware_mask)


def text_configs(base: Any) -> list[Any]:
    """The configs that the attention layers and the masks of a (base) model's language model are made by."""
    found = [language_model(base).config, base.config.get_text_config()]
    return found if found[0] is not found[1] else found[:1]


def language_model(base: Any) -> Any:
    """The language model, without its head, of a base model."""
    return getattr(base, "language_model", None) or base.text_model


def takes_masks(base: Any) -> bool:
    """Whether the language model's attention takes an additive mask."""
    return all(str(c._attn_implementation).removeprefix(PREFIX) in SUPPORTED for c in text_configs(base))


def set_attention(base: Any, on: bool) -> None:
    """Switch the language model of a (base) model to the attention of this file or back.

    Raises:
        ValueError: its attention takes no additive mask.
    """
    if on and not takes_masks(base):
        raise ValueError(
            "size_aware=True and llm_layers work on attention's mask, which "
            f"{text_configs(base)[0]._attn_implementation!r} cannot take; they need sdpa or eager. Load the model with "
            "attn_implementation='sdpa' (the vision encoder may go on with another), or leave both out."
        )
    for config in text_configs(base):
        plain = str(config._attn_implementation).removeprefix(PREFIX)
        if on or plain != config._attn_implementation:
            config._attn_implementation_internal = PREFIX + plain if on else plain
            sizes_of(config).log_mass = None


def note_sizes(base: Any, prompt: Prompt, kept: dict[str, list[KeptUnit]], past: int) -> None:
    """Note what the tokens of a prompt stand for, or that a new prompt holds no pictures.

    Args:
        base: the model without its head.
        prompt: the ids of a call, all of its placeholders among them.
        kept: modality -> what was kept.
        past: tokens in the cache before the ids.
    """
    sizes = [sizes_of(config) for config in text_configs(base)]
    log_mass: Tensor | None = None
    if kept:
        log_mass = torch.zeros(prompt.ids.shape, device=prompt.ids.device)
        for modality, units in kept.items():
            masses = torch.cat([unit.mass for unit in units if unit.mass is not None])
            places = prompt.places(modality)
            if len(places) != len(masses):
                return  # the stock model will say so
            log_mass.view(-1)[places] = masses.log().to(log_mass.device)
    if past:
        before = sizes[0].log_mass
        if log_mass is None:
            return  # a cache goes on with what was noted for it
        if before is None:
            before = log_mass.new_zeros(len(log_mass), past)
        log_mass = torch.cat([F.pad(before, (0, max(0, past - before.shape[1])))[:, :past], log_mass], dim=1)
    for one in sizes:
        one.log_mass = log_mass


def size_own_mask(base: Any, mask: Any) -> Any:
    """A call's own bool mask (B, 1, Q, KV) as a float one with log-masses; any other mask as it is."""
    log_mass = sizes_of(text_configs(base)[0]).log_mass
    if log_mass is None or not isinstance(mask, Tensor) or mask.dim() != 4 or mask.dtype != torch.bool:
        return mask
    hidden = torch.zeros(mask.shape, dtype=base.dtype, device=mask.device)
    return add_log_mass(hidden.masked_fill(~mask, torch.finfo(base.dtype).min), log_mass)
