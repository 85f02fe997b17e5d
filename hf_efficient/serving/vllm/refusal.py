"""A model with a pruner that the plug-in does not serve is refused, and not served as if it had none."""

from __future__ import annotations

from typing import Any

from hf_efficient.compat.vllm import model_class

from .families import ARCHITECTURES
from .model import PrunedModel
from .settings import served_config


def refuse_other_models(model_config: Any) -> None:
    """Raise where a pruner is configured for a model whose class in vLLM is none of ours.

    Args:
        model_config: vLLM's `ModelConfig`.

    Raises:
        ValueError: so it is.
    """
    if served_config(model_config) is None:
        return
    found = model_class(model_config)
    if not issubclass(found, PrunedModel):
        raise ValueError(
            f"{found.__name__} of vLLM cannot be served with a token pruner; architectures that can: "
            f"{', '.join(ARCHITECTURES)} (not with --model-impl transformers). Serve it with transformers, or as it is "
            """with --hf-overrides '{"token_pruner": null}'."""
        )
