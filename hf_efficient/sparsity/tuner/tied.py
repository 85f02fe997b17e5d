"""Layers that have the input embedding's weight as their own: which they are, and whether they can train as one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from .targets import base_of


def embeddings_and_tied(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the modules that share the weight of a model's input embedding, it among them; empty if none does."""
    embedding = _input_embedding(model)
    if embedding is None:
        return []
    weight = getattr(_plain(embedding), "weight", None)
    sharing = [key for key, module in modules.items() if getattr(_plain(module), "weight", None) is weight]
    return sharing if weight is not None and len(sharing) > 1 else []


def heads_that_follow(model: nn.Module, modules: Mapping[str, nn.Module], sharing: list[str]) -> list[str] | None:
    """Those of the sharing modules that PEFT can tie to a copy of the embedding; None, with a warning, if not to all.

    PEFT puts a linear layer without a bias in their place.
    """
    embedding = _input_embedding(model)
    heads = [key for key in sharing if modules[key] is not embedding]
    if all(isinstance(head := _plain(modules[key]), nn.Linear) and head.bias is None for key in heads):
        return heads
    warnings.warn(
        f"{', '.join(map(repr, sharing))} share one weight and stay as they are: PEFT can train an embedding and its "
        "heads as one only where these are linear layers without a bias. To train them, give each a weight of its own "
        "before the adapter is made, and set model.config.tie_word_embeddings = False.",
        stacklevel=2,
    )
    return None


def _input_embedding(model: Any) -> nn.Module | None:
    try:
        embedding: nn.Module | None = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # no language model
        return None
    return embedding


def _plain(module: Any) -> Any:
    """The module without what adapters have put around it."""
    return getattr(module, "original_module", base_of(module))
