"""Model and processor with all of a plan, from a folder or the Hub."""

from __future__ import annotations

import os
from typing import Any

from hf_efficient.compat.transformers import has_adapter
from hf_efficient.extras import extra
from hf_efficient.files import is_local
from hf_efficient.files.finding import ACCESS_ARGUMENTS, ADAPTER_FOLDER, HUB_ARGUMENTS
from hf_efficient.sparsity.storage.stored import load_stored

from .precision import check_loaded, quantization_config


def load(plan: Any, folder_or_id: str | os.PathLike[str], is_trainable: bool, kwargs: dict[str, Any]) -> Any:
    """What `EfficiencyPlan.load` returns, of a plan that is known.

    Args:
        plan: an `EfficiencyPlan`.
        folder_or_id: a plan's folder, what an `EfficientTrainer` saved, or a stock model.
        is_trainable: as of `PeftModel.from_pretrained`.
        kwargs: as of `EfficiencyPlan.load`.
    """
    is_local(folder_or_id)  # raises if it is neither here nor on the Hub
    name = os.fspath(folder_or_id)
    hub = {k: v for k, v in kwargs.items() if k in HUB_ARGUMENTS and v is not None}
    base, base_hub, above = name, hub, hub.get("subfolder") or ""
    places = (f"{above}/{ADAPTER_FOLDER}".lstrip("/"), above)
    found = [place for place in places if has_adapter(name, **{**hub, "subfolder": place})]
    if len(found) > 1:
        raise ValueError(
            f"{name!r} has two adapters: a plan's in {ADAPTER_FOLDER!r}, and one at its top, as a Trainer saves it. "
            "Move one of them away."
        )
    adapter = found[0] if found else None
    if adapter == above:  # a Trainer's folder, which has the adapter alone
        base, base_hub = _base_of(name, hub)
    rest = {k: v for k, v in kwargs.items() if k not in HUB_ARGUMENTS}
    model = _model(plan, base, {**base_hub, **rest})
    if adapter is not None:
        with extra("sparsity"):
            from peft import PeftModel

        where = {**hub, "subfolder": adapter} if adapter else hub
        model = PeftModel.from_pretrained(model, name, is_trainable=is_trainable, **where)
    return plan.apply(model, _processor(name, hub) or _processor(base, base_hub))


def _base_of(name: str, hub: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and Hub arguments of the model that an adapter was made for."""
    with extra("sparsity"):
        from peft import PeftConfig

    config = PeftConfig.from_pretrained(name, **hub)
    if not config.base_model_name_or_path:
        raise ValueError(
            f"The adapter in {name!r} does not name its base model. Load that, then PeftModel.from_pretrained(model, "
            "folder), then EfficiencyPlan.from_pretrained(folder).apply(model, processor)."
        )
    access = {k: hub[k] for k in ACCESS_ARGUMENTS if k in hub}
    return config.base_model_name_or_path, access | ({"revision": config.revision} if config.revision else {})


def _model(plan: Any, base: str, kwargs: dict[str, Any]) -> Any:
    """The stock model, in the class that its config names, with the plan's precision."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(base, **{k: v for k, v in kwargs.items() if k in HUB_ARGUMENTS})
    named = (config.architectures or [None])[0]
    cls = getattr(transformers, named or "", None)
    if cls is None:
        raise ValueError(
            f"architectures={config.architectures!r} in the config of {base!r} names no class of transformers. Load "
            "the model with its own class, then plan.apply(model, processor)."
        )
    stored = getattr(config, "quantization_config", None)
    if plan.precision is not None and stored is not None:
        check_loaded(plan.precision, stored)
    elif plan.precision is not None:
        if kwargs.get("quantization_config") is not None:
            raise ValueError("quantization_config is given twice: the plan has a precision, which is applied here.")
        kwargs = {**kwargs, "quantization_config": quantization_config(plan.precision)}
    return load_stored(cls, base, **kwargs)


def _processor(name: str, hub: dict[str, Any]) -> Any:
    """The processor or tokenizer in a folder; None where there is none."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(name, **hub)
    except (OSError, ValueError):  # saved without one
        return None
