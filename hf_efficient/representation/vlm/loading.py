"""Models with their pruner, from one folder or Hub id: whole models, and adapters with the model they were made for."""

from __future__ import annotations

import os
from typing import Any

from hf_efficient.compat.transformers import has_adapter
from hf_efficient.extras import extra
from hf_efficient.files import is_local
from hf_efficient.files.finding import ACCESS_ARGUMENTS, ADAPTER_FOLDER, HUB_ARGUMENTS
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.sparsity.storage.stored import load_stored

from .attach import attach_token_pruner


def load_token_pruned(
    folder_or_id: str | os.PathLike[str],
    config: TokenPrunerConfig | dict[str, Any] | str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a model and its processor with a token pruner attached.

    Args:
        folder_or_id: what an attached model and processor were saved to, alone or by an `EfficiencyPlan`; an adapter
            of PEFT on such a model; or any stock folder or Hub id with `config`.
        config: a `TokenPrunerConfig`, its values as a dict, or a folder or Hub id it was saved to; None reads
            `token_pruner_config.json` beside the weights.
        kwargs: for the model's `from_pretrained`; those about the Hub (`revision`, `token`, `cache_dir`,
            `local_files_only`, `force_download`) and `subfolder` hold for the processor and the saved config too.

    Returns:
        Model and processor. Of an adapter's folder a `PeftModel` on the base model that the adapter names, and the
        processor saved with it, or else the base model's; of a plan's folder a `PeftModel` if it has an adapter.

    Raises:
        FileNotFoundError: there is no such folder, or no config is given and none was saved.
        ValueError: as `attach_token_pruner`, or an adapter that does not say what it was made for.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    is_local(folder_or_id)  # raises if it is neither here nor on the Hub
    hub = {k: v for k, v in kwargs.items() if k in HUB_ARGUMENTS and v is not None}
    if config is not None:  # checked before the weights are read; `revision` and `subfolder` are those of the model
        config = TokenPrunerConfig.of(config, **{k: hub[k] for k in ACCESS_ARGUMENTS if k in hub})
    if has_adapter(os.fspath(folder_or_id), **hub):
        return _load_adapter(folder_or_id, config, hub, {k: v for k, v in kwargs.items() if k not in HUB_ARGUMENTS})
    if config is None:
        config = TokenPrunerConfig.from_pretrained(folder_or_id, **hub)  # first: it fails before the weights are read
    processor = AutoProcessor.from_pretrained(folder_or_id, **hub)
    model = load_stored(AutoModelForImageTextToText, folder_or_id, **kwargs)
    below = {**hub, "subfolder": f"{hub.get('subfolder') or ''}/{ADAPTER_FOLDER}".lstrip("/")}
    if has_adapter(os.fspath(folder_or_id), **below):
        with extra():
            from peft import PeftModel

        model = PeftModel.from_pretrained(model, os.fspath(folder_or_id), **below)
    return attach_token_pruner(model, processor, config)


def _load_adapter(
    folder_or_id: str | os.PathLike[str], config: Any, hub: dict[str, Any], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """An adapter on its base model, with the pruner it was saved with, or else that of its base model."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with extra():
        from peft import PeftConfig, PeftModel

    adapter = PeftConfig.from_pretrained(os.fspath(folder_or_id), **hub)
    base_id = adapter.base_model_name_or_path
    if not base_id:
        raise ValueError(
            f"The adapter in {os.fspath(folder_or_id)!r} does not name its base model. Load that, then "
            "PeftModel.from_pretrained(model, folder), then attach_token_pruner(model, processor, folder)."
        )
    base_hub = {k: hub[k] for k in ACCESS_ARGUMENTS if k in hub}
    if adapter.revision is not None:
        base_hub["revision"] = adapter.revision
    if config is None:
        try:
            config = TokenPrunerConfig.from_pretrained(folder_or_id, **hub)
        except OSError as missing:
            try:
                config = TokenPrunerConfig.from_pretrained(base_id, **base_hub)
            except OSError:
                raise missing from None
    try:
        processor = AutoProcessor.from_pretrained(folder_or_id, **hub)
    except (OSError, ValueError):  # saved without it
        processor = AutoProcessor.from_pretrained(base_id, **base_hub)
    model = load_stored(AutoModelForImageTextToText, base_id, **base_hub, **kwargs)
    model = PeftModel.from_pretrained(model, os.fspath(folder_or_id), **hub)
    return attach_token_pruner(model, processor, config)
