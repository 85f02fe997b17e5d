"""What a vision encoder is made of, as far as importance asks: its attention layers, its [CLS] token, its sources."""

from __future__ import annotations

import re

from torch import nn
from transformers.utils import logging

from hf_efficient.compat.transformers import dispatching_forward

logger = logging.get_logger(__name__)


def attention_layers(tower: nn.Module) -> list[nn.Module]:
    """The attention modules of an encoder's layers, first to last.

    Those that look their attention function up in the interface of transformers, so that a `Watch` can show what it is
    given; of several kinds (as of a pooling head) those that are most. Empty where there are none.
    """
    kinds: dict[str, list[nn.Module]] = {}
    for name, module in tower.named_modules():
        if dispatching_forward(module) is not None:
            kinds.setdefault(re.sub(r"\d+", "*", name), []).append(module)
    return max(kinds.values(), key=len, default=[])


def layer_of(hidden_state: int | list[int] | None) -> int:
    """Index of the layer that makes `hidden_states[hidden_state]`: of a list the last counts, None is the last layer.

    State 0, which no layer makes, counts as state 1.
    """
    state = hidden_state[-1] if isinstance(hidden_state, list) else hidden_state
    if state is None:
        return -1
    return state if state < 0 else max(0, state - 1)


def prefix_tokens(tower: nn.Module) -> int:
    """Tokens an encoder puts before those of the patches: [CLS] and registers."""
    embeddings = getattr(getattr(tower, "vision_model", tower), "embeddings", None)
    has_cls = any(hasattr(embeddings, name) for name in ("class_embedding", "cls_token"))
    registers = getattr(embeddings, "register_tokens", None)
    return int(has_cls) + (0 if registers is None else registers.shape[1])


def choose_source(wanted: str, offered: tuple[str, ...], fault: str | None, encoder: str) -> str | None:
    """Where importance comes from: one of `offered`, or None where features must tell.

    Args:
        wanted: a `TokenPrunerConfig.importance`.
        offered: the attention that this encoder gives, the best first.
        fault: why it offers none.
        encoder: its class, for messages.

    Raises:
        ValueError: what is wanted cannot be had from this encoder.
    """
    why = "" if fault is None else f": {fault}"
    if wanted == "auto" and not offered:
        logger.warning_once(
            f"{encoder} offers no attention to take importance from{why}. Importance is distinctiveness instead "
            "(importance='distinct')."
        )
    if wanted == "auto":
        return offered[0] if offered else None
    if wanted in ("cls", "received") and wanted not in offered:
        raise ValueError(
            f"importance={wanted!r} cannot be had from {encoder}{why}; it offers: "
            f"{', '.join([*offered, 'distinct', 'norm'])}. importance='auto' takes the first."
        )
    return wanted if wanted in offered else None
