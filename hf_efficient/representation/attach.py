"""The face: stock models and processors with fewer visual tokens, in two lines."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

from .attached import Attached, attached_class
from .config import TokenPrunerConfig
from .families import family_of
from .inputs import MODALITIES
from .placeholders import PlaceholderPruner, PrunedProcessor
from .pruned_model import PrunedBase, PrunedGeneration
from .pruner import TokenPruner
from .sized_attention import takes_masks

logger = logging.get_logger(__name__)


def attach_token_pruner(
    model: Any, processor: Any, config: TokenPrunerConfig | dict[str, Any] | str | os.PathLike[str]
) -> tuple[Any, Any]:
    """Let a stock model and its processor work with fewer visual tokens, in place.

    Afterwards `processor(...)` emits exactly K placeholders for every picture, tile or frame, and the model delivers
    exactly K features for it; `forward`, `generate`, training and saving go on as before. What was kept is told by
    `model.base_model.token_pruner.last`. Attaching again replaces the config.

    Args:
        model: a stock vision-language model with a language head, of a supported family.
        processor: its stock processor.
        config: a `TokenPrunerConfig`, its values as a dict, or a folder or Hub id it was saved to.

    Returns:
        The same model and processor.

    Raises:
        ValueError: the family is not supported, the processor is not the model's, or the config does not suit both.
    """
    if isinstance(config, dict):
        config = TokenPrunerConfig.from_dict(config)
    elif not isinstance(config, TokenPrunerConfig):
        config = TokenPrunerConfig.from_pretrained(config)
    if config.adaptive:
        raise ValueError(
            "adaptive=True cannot be attached: the processor writes placeholders before a picture is looked at. Use "
            "prune_inputs(model, inputs, config) on inputs of the stock processor, or min_group_share."
        )
    family = family_of(model)
    _check_pair(model, processor, family)
    _check_generator(model, config)
    base = model.base_model
    size_aware = bool(config.size_aware) or (config.wants_sizes and takes_masks(base))
    pruner = TokenPruner(config, family, size_aware)
    if not family.mrope and config.positions != "auto" and size_aware == (config.positions == "compact"):
        logger.warning_once(
            f"positions={config.positions!r} {'with' if size_aware else 'without'} size-aware attention: in published "
            "measurements on LLaVA-1.5 this pair loses to the other two (docs/itg.md). Measure it, or use "
            "positions='auto'."
        )
    family.source(base, "image", config.importance_source)  # raises if the encoder has no such importance
    before = vars(base).get("token_pruner")
    if before is not None:
        before.leave(base)
    try:
        pruner.enter(base)
    except ValueError:
        pruner.leave(base)
        if before is not None:
            before.enter(base)
        raise
    mixins: Any = ((base, PrunedBase), (model, PrunedGeneration), (processor, PrunedProcessor))
    for thing, mixin in mixins:
        if not isinstance(thing, Attached):
            stock: Any = type(thing)
            _set_class(thing, attached_class(stock, mixin))
    base.token_pruner = pruner
    processor.token_pruner = PlaceholderPruner(config, family, model)
    return model, processor


def detach_token_pruner(model: Any, processor: Any) -> tuple[Any, Any]:
    """Give a model and a processor their stock classes back, in place; either may be stock already.

    Returns:
        The same model and processor.
    """
    base = model.base_model
    if isinstance(base, PrunedBase):
        base.token_pruner.leave(base)
    for thing in (model, model.base_model, processor):
        if isinstance(thing, Attached):
            _set_class(thing, thing.stock_class)
            thing.__dict__.pop("token_pruner", None)
    return model, processor


@contextmanager
def token_pruner(
    model: Any, processor: Any, config: TokenPrunerConfig | dict[str, Any] | str | os.PathLike[str]
) -> Iterator[tuple[Any, Any]]:
    """Attach a token pruner inside a `with` block; what was attached before comes back after it, also on errors.

    Arguments and errors as of `attach_token_pruner`. Yields model and processor.
    """
    before = [thing.__dict__.get("token_pruner") for thing in (model.base_model, processor)]
    attach_token_pruner(model, processor, config)
    try:
        yield model, processor
    finally:
        model.base_model.token_pruner.leave(model.base_model)
        if before[0] is not None:
            before[0].enter(model.base_model)
        for thing, partner, pruner in ((model.base_model, model, before[0]), (processor, None, before[1])):
            if pruner is not None:
                thing.token_pruner = pruner
                continue
            for part in (thing, partner):
                if isinstance(part, Attached):
                    _set_class(part, part.stock_class)
            thing.__dict__.pop("token_pruner", None)


def load_token_pruned(
    folder_or_id: str | os.PathLike[str], config: TokenPrunerConfig | dict[str, Any] | None = None, **kwargs: Any
) -> tuple[Any, Any]:
    """Load a model and its processor with a token pruner attached.

    Args:
        folder_or_id: what an attached model and processor were saved to, or any stock folder or Hub id with `config`.
        config: the pruner's config; None reads `token_pruner_config.json` beside the weights.
        kwargs: for the model's `from_pretrained`; those about the Hub (`revision`, `token`, `cache_dir`,
            `local_files_only`, `force_download`, `subfolder`) hold for the processor and the config too.

    Returns:
        Model and processor.

    Raises:
        FileNotFoundError: no config is given and none was saved.
        ValueError: as `attach_token_pruner`.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    hub = {k: v for k, v in kwargs.items() if k in HUB_ARGUMENTS}
    if config is None:
        config = TokenPrunerConfig.from_pretrained(folder_or_id, **hub)  # first: it fails before the weights are read
    processor = AutoProcessor.from_pretrained(folder_or_id, **hub)
    model = AutoModelForImageTextToText.from_pretrained(folder_or_id, **kwargs)
    return attach_token_pruner(model, processor, config)


HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


def _set_class(thing: Any, new: type) -> None:
    """Change an object's class; where accelerate holds a module's forward in the instance, change that too."""
    thing.__class__ = new
    if "_old_forward" in vars(thing):
        thing._old_forward = types.MethodType(new.forward, thing)  # type: ignore[attr-defined]


def _check_generator(model: Any, config: TokenPrunerConfig) -> None:
    """Raise unless the config's generator, if any, makes tokens for this model."""
    width = model.config.get_text_config().hidden_size
    if config.generator is not None and config.generator.width != width:
        raise ValueError(
            f"The config's generator was made for tokens {config.generator.width} wide, those of "
            f"{type(model).__name__} are {width} wide. Use it with the model it was trained for, or set generator=None."
        )


def _check_pair(model: Any, processor: Any, family: Any) -> None:
    """Raise unless model and processor belong together."""
    if not hasattr(model, "generate") or model.base_model is model:
        raise ValueError(
            f"{type(model).__name__} has no language head; pass the whole model (...ForConditionalGeneration), whose "
            "base model gets the pruner."
        )
    if family.processor not in [cls.__name__ for cls in type(processor).__mro__]:
        raise ValueError(
            f"{type(processor).__name__} is not the processor of {type(model).__name__}; expected {family.processor}."
        )
    for modality in MODALITIES:
        expected = getattr(model.config, f"{modality}_token_id", None)
        if expected is None or not hasattr(model.base_model, f"get_{modality}_features"):
            continue
        token = family.placeholder(processor, modality)
        found = processor.tokenizer.convert_tokens_to_ids(token)
        if found != expected:
            raise ValueError(
                f"The processor writes {token!r} (id {found}) for a {modality}, but the model looks for id {expected}: "
                "they do not belong together. Load both from the same folder."
            )
