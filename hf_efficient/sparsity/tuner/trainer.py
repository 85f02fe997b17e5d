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

    The same as wrapping the model with `get_peft_model` and giving it to a plain Trainer. After training,
    `trainer.model.merge_and_unload()` is the plain model with zeros.

    Args:
        model: plain model, or one that has a BiDST adapter already.
        args: `TrainingArguments`.
        sparsity_config: how sparse; None if the model has its adapter.
        kwargs: of `Trainer`.

    Raises:
        ValueError: neither a config nor an adapter, or both.
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
            raise ValueError("BiDSTTrainer needs the model itself; model_init cannot be made sparse.")
        adapted = any(isinstance(config, BiDSTConfig) for config in getattr(model, "peft_config", {}).values())
        if adapted == (sparsity_config is not None):
            found = "has a BiDST adapter already" if adapted else "is plain"
            raise ValueError(
                f"The model {found}; pass sparsity_config=BiDSTConfig(...) with a plain model, and only with one."
            )
        if sparsity_config is not None:
            model = get_peft_model(model, sparsity_config)
        super().__init__(model, args, *positional, **kwargs)
