"""Models inside others: adapters of PEFT, data parallelism, torch.compile. A pruner goes to the innermost."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hf_efficient.compat.torch import compiled_module


def unwrapped(model: Any) -> Any:
    """The transformers model that others are wrapped around; itself where none is."""
    while True:
        inner = _inside(model)
        if inner is None:
            return model
        model = inner


def _inside(model: Any) -> Any:
    """What one wrapper holds, None where a model is no wrapper. Libraries that were not imported wrapped nothing."""
    compiled = compiled_module(model)
    if compiled is not None:
        return compiled
    parallel: tuple[Any, ...] = (DataParallel, DistributedDataParallel)
    for module, name in (("torch.distributed.fsdp", "FullyShardedDataParallel"), ("deepspeed", "DeepSpeedEngine")):
        known = getattr(sys.modules.get(module), name, None)
        parallel += () if known is None else (known,)
    if isinstance(model, parallel):
        return model.module
    peft = sys.modules.get("peft")
    if peft is None:
        return None
    if isinstance(model, (peft.PeftModel, peft.PeftMixedModel)):
        return model.base_model
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return model.model if tuners is not None and isinstance(model, tuners.BaseTuner) else None


def check_bare(base: nn.Module) -> None:
    """Raise if a (base) model is itself wrapped, so that its class cannot be changed.

    Raises:
        ValueError: how to go about it.
    """
    if unwrapped(base) is not base:
        raise ValueError(
            f"The model's base is inside a {type(base).__name__}: attach the token pruner before it is wrapped."
        )


def pruner_below(model: Any) -> Any:
    """The `TokenPruner` of the innermost model, None where there is none."""
    base = getattr(unwrapped(model), "base_model", None)
    return vars(base).get("token_pruner") if isinstance(base, nn.Module) else None


def follow_peft() -> None:
    """Let `PeftModel.save_pretrained`, which saves adapters alone, save the config of the pruner below them as well.

    PEFT makes its model around ours, and asks nothing of ours when it saves: the method is wrapped, once, when a model
    with a pruner is met by PEFT. Models without a pruner are saved as before.
    """
    peft = sys.modules.get("peft")
    if peft is None or hasattr(peft.PeftModel.save_pretrained, "saves_token_pruner"):
        return
    stock = peft.PeftModel.save_pretrained

    @functools.wraps(stock)
    def save_pretrained(self: Any, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        result = stock(self, save_directory, *args, **kwargs)
        pruner = pruner_below(self)
        call = inspect.signature(stock).bind(self, save_directory, *args, **kwargs).arguments
        if pruner is not None and call.get("is_main_process", True):
            names = call.get("selected_adapters") or list(self.peft_config)
            for folder in {".", *(name for name in names if name != "default")}:
                pruner.config.save_pretrained(os.path.join(save_directory, folder))
        return result

    save_pretrained.saves_token_pruner = True  # type: ignore[attr-defined]
    peft.PeftModel.save_pretrained = save_pretrained


def unfollow_peft() -> None:
    """Undo `follow_peft`: `PeftModel.save_pretrained` is PEFT's own again."""
    peft = sys.modules.get("peft")
    if peft is not None and hasattr(peft.PeftModel.save_pretrained, "saves_token_pruner"):
        peft.PeftModel.save_pretrained = peft.PeftModel.save_pretrained.__wrapped__
