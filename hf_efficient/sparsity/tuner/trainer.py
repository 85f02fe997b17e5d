"""The Trainer with sparse training built in."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_efficient.extras import extra
from hf_efficient.files.checkpoints import WholeCheckpoints

with extra("sparsity"):
    from peft import get_peft_model
    from transformers import Trainer

    from .config import BiDSTConfig


class BiDSTTrainer(WholeCheckpoints, Trainer):
    """`Trainer` of a sparse model: `BiDSTTrainer(model, args, sparsity_config=BiDSTConfig(...), ...)`.

    Wraps the model with `get_peft_model`, and goes back to the last whole checkpoint when resuming. After training,
    `trainer.model.merge_and_unload()` returns the plain model with zeros.

    Args:
        model: a plain model, or one that has a BiDST adapter.
        args: `TrainingArguments`.
        positional: further arguments of `Trainer`.
        sparsity_config: for a plain model; None if the model has an adapter.
        kwargs: further arguments of `Trainer`.

    Raises:
        ValueError: no model, neither a config nor an adapter, or both of them.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: Any = None,
        *positional: Any,
        sparsity_config: BiDSTConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if model is None:
            raise ValueError("BiDSTTrainer needs a model; model_init is not supported.")
        adapted = any(isinstance(config, BiDSTConfig) for config in getattr(model, "peft_config", {}).values())
        if adapted == (sparsity_config is not None):
            found = "already has a BiDST adapter" if adapted else "has no BiDST adapter"
            raise ValueError(
                f"The model {found}. Pass sparsity_config=BiDSTConfig(...) with a plain model, and only with one."
            )
        if sparsity_config is not None:
            model = get_peft_model(model, sparsity_config)
        super().__init__(model, args, *positional, **kwargs)

    def __repr__(self) -> str:
        configs = getattr(self.model, "peft_config", {})
        return f"{type(self).__name__}({type(self.model).__name__}, adapters={list(configs)})"
