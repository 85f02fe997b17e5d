"""Proportional attention: a token that stands for n tokens counts as n in the softmax of the language model.

    logits_qk += log n_k

which is, for tokens at the same position, exactly what n copies of token k would do (proportional attention of ToMe,
Bolya et al., ICLR 2023). The bias goes into the mask that transformers makes once per call, for all layers, caches and
windows; attention itself runs as it did, with sdpa or eager. The vision encoder is left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from hf_efficient.compat.transformers import attention_function, attention_name, set_attention_name, stock_mask
from hf_efficient.representation.vlm.kept import KeptUnit
from hf_efficient.representation.vlm.prompt import Prompt

from .calls import log_mass_under_way
from .layer_pruning import drops_of

PREFIX = "token_pruner_"
STOCK_MASKS: dict[str, Callable[..., Any]] = {name: stock_mask(name) for name in ("sdpa", "eager")}


def proportional_attention_mask(
    stock: Callable[..., Any], *, batch_size: int, kv_length: int, kv_offset: int = 0, **kwargs: Any
) -> Any:
    """The mask of transformers with log-masses on its columns, (B, 1, Q, KV) float; `stock`'s where there are none."""
    log_mass = log_mass_under_way()
    arguments = {"batch_size": batch_size, "kv_length": kv_length, "kv_offset": kv_offset, **kwargs}
    if log_mass is None:
        return stock(**arguments)
    return add_log_mass(STOCK_MASKS["eager"](**arguments), log_mass, kv_offset)


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
    name: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """Attention of a stock name; a layer whose attention is asked for shows its queries and keys on the way."""
    if getattr(module, "attention_watched", False):
        drops = drops_of(kwargs)
        if drops is not None:
            drops.watch(module, query, key, value, attention_mask, kwargs.get("scaling"))
    return stock_attention(name, module)(module, query, key, value, attention_mask, **kwargs)


def stock_attention(name: str, module: Any) -> Callable[..., Any]:
    """The attention function that a module would call by a stock name.

    Raises:
        ValueError: a module with no attention of that name.
    """
    found = attention_function(name, module)
    if found is None:
        raise ValueError(
            f"{type(module).__name__} has no {name} attention to add sizes to. Load the model with "
            "attn_implementation='sdpa', or set proportional_attention=False and leave out llm_layers."
        )
    return found


for _name in STOCK_MASKS:
    AttentionInterface.register(PREFIX + _name, functools.partial(watched_attention, _name))
    AttentionMaskInterface.register(PREFIX + _name, functools.partial(proportional_attention_mask, STOCK_MASKS[_name]))


def text_configs(base: Any) -> list[Any]:
    """The configs that the attention layers and the masks of a (base) model's language model are made by."""
    found = [language_model(base).config, base.config.get_text_config()]
    return found if found[0] is not found[1] else found[:1]


def language_model(base: Any) -> Any:
    """The language model, without its head, of a base model."""
    return getattr(base, "language_model", None) or base.text_model


def takes_masks(base: Any) -> bool:
    """Whether the language model's attention takes an additive mask."""
    return all(str(attention_name(c)).removeprefix(PREFIX) in STOCK_MASKS for c in text_configs(base))


def set_attention(base: Any, on: bool) -> None:
    """Switch the language model of a (base) model to the attention of this file or back.

    Raises:
        ValueError: its attention takes no additive mask.
    """
    if on and not takes_masks(base):
        raise ValueError(
            "proportional_attention=True and llm_layers work on attention's mask, which "
            f"{attention_name(text_configs(base)[0])!r} cannot take; they need sdpa or eager. Load the model with "
            "attn_implementation='sdpa' (the vision encoder may go on with another), or leave both out."
        )
    for config in text_configs(base):
        plain = str(attention_name(config)).removeprefix(PREFIX)
        if on or plain != attention_name(config):
            set_attention_name(config, PREFIX + plain if on else plain)


def keep_attention(model: Any, base: Any, on: bool, choose: Callable[[], Any]) -> Any:
    """Let `choose` set the attention of a model, and switch its (base) model's language model again as it was.

    Raises:
        ValueError: the language model's new attention takes no additive mask; all goes on with the old one.
    """
    configs = [module.config for module in model.modules() if hasattr(module, "config")] + text_configs(base)
    before = [(config, attention_name(config)) for config in configs]
    result = choose()
    try:
        set_attention(base, on)
    except ValueError:
        for config, name in before:
            set_attention_name(config, name)
        raise
    return result


def check_attention(base: Any) -> None:
    """Raise if the language model's attention was chosen anew behind the back of a pruner that works on it."""
    for config in text_configs(base):
        if not str(attention_name(config)).startswith(PREFIX):
            raise ValueError(
                f"The language model's attention is {attention_name(config)!r} since the pruner was attached, so "
                "that tokens would not count by their sizes, nor be dropped in llm_layers. Set it with "
                "model.set_attn_implementation(...) of the whole model, or attach again."
            )


def log_masses(prompt: Prompt, kept: dict[str, list[KeptUnit]], past: int, before: Tensor | None) -> Tensor | None:
    """Logs of what the tokens of a prompt stand for, those before it included: (B, past + L) float32.

    Args:
        prompt: the ids of a call, all of its placeholders among them.
        kept: modality -> what was kept.
        past: tokens in the cache before the ids.
        before: (B, P) what those stand for; None where each stands for itself.

    Returns:
        None where every token stands for itself.
    """
    if not kept:
        return before if past else None
    log_mass = torch.zeros(prompt.ids.shape, device=prompt.ids.device)
    for modality, units in kept.items():
        masses = torch.cat([unit.mass for unit in units if unit.mass is not None])
        indices = prompt.placeholder_indices(modality)
        if len(indices) != len(masses):
            return before if past else None  # the stock model will say so
        log_mass.view(-1)[indices] = masses.log().to(log_mass.device)
    if not past:
        return log_mass
    before = log_mass.new_zeros(len(log_mass), past) if before is None else before
    return torch.cat([F.pad(before, (0, max(0, past - before.shape[1])))[:, :past], log_mass], dim=1)


def size_own_mask(mask: Any, log_mass: Tensor | None, dtype: torch.dtype) -> Any:
    """A call's own bool mask (B, 1, Q, KV) as a float one with log-masses; any other mask as it is."""
    if log_mass is None or not isinstance(mask, Tensor) or mask.dim() != 4 or mask.dtype != torch.bool:
        return mask
    hidden = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return add_log_mass(hidden.masked_fill(~mask, torch.finfo(dtype).min), log_mass)
