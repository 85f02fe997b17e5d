"""The face: stock models and processors with fewer visual tokens, in two lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

from hf_efficient.checks import check_model
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.decoder.proportional_attention import takes_masks
from hf_efficient.wrapped import check_bare, follow_peft, unwrapped

from .attached import Attached, attached_class, set_class
from .families import trial
from .families.family import Family
from .inputs import check_config
from .needs import check_transformers
from .placeholders import PlaceholderPruner, PrunedProcessor
from .proof import family_for, written_for
from .pruned_model import PrunedBase, PrunedGeneration
from .pruner import TokenPruner

logger = logging.get_logger(__name__)


def attach_token_pruner(
    model: Any, processor: Any, config: TokenPrunerConfig | dict[str, Any] | str | os.PathLike[str]
) -> tuple[Any, Any]:
    """Let a stock model and its processor work with fewer visual tokens, in place.

    Afterwards `processor(...)` emits exactly K placeholders for every image, tile or frame, and the model delivers
    exactly K features for it; `forward`, `generate`, training and saving go on as before. What was kept is in
    `model.token_pruner.last`. Attaching again replaces the config.

    Args:
        model: a stock vision-language model with a language head, of a supported family; or one inside an adapter of
            PEFT, data parallelism or torch.compile, which then gets the pruner.
        processor: its stock processor.
        config: a `TokenPrunerConfig`, its values as a dict, or a folder or Hub id it was saved to.

    Returns:
        The same model and processor.

    Raises:
        TypeError: `model` is no torch module.
        ValueError: the family is not supported, the processor is not the model's, or the config does not suit both.
        ImportError: the installed transformers is older than 5.23.
    """
    check_transformers("attach_token_pruner")
    config = TokenPrunerConfig.of(config)
    check_model(model, "a vision-language model of transformers, loaded")
    if config.adaptive:
        raise ValueError(
            "adaptive=True cannot be attached: the processor writes placeholders before an image is looked at. Use "
            "prune_inputs(model, inputs, config) on inputs of the stock processor, or min_group_share."
        )
    given, model = model, unwrapped(model)
    family = family_for(model, processor, again=True)
    _check_pair(model, processor, family)
    _check_generator(model, config)
    base = model.base_model
    check_bare(base)
    proportional_attention = bool(config.proportional_attention) or (config.wants_sizes and takes_masks(base))
    pruner = TokenPruner(config, family, proportional_attention)
    _warn_of_positions(config, family, proportional_attention)
    check_config(config, model.config.model_type, family)
    trial.forget(base)
    family.source(base, "image", config.importance_source)  # raises if the encoder has no such importance
    _warn_of_videos(config, family, base)
    _exchange(base, pruner)
    mixins: Any = ((base, PrunedBase), (model, PrunedGeneration), (processor, PrunedProcessor))
    for thing, mixin in mixins:
        if not isinstance(thing, Attached):
            stock: Any = type(thing)
            set_class(thing, attached_class(stock, mixin))
    base.token_pruner = pruner
    processor.token_pruner = PlaceholderPruner(config, family, model)
    follow_peft()
    return given, processor


def _warn_of_positions(config: TokenPrunerConfig, family: Family, proportional_attention: bool) -> None:
    """Say where the config asks for positions that do worse with the attention there is."""
    if not family.mrope and config.positions != "auto" and proportional_attention == (config.positions == "compact"):
        how = "with" if proportional_attention else "without"
        logger.warning_once(
            f"positions={config.positions!r} {how} proportional attention: in published measurements on LLaVA-1.5 this "
            "pair loses to the other two (docs/itg.md). Measure it, or use positions='auto'."
        )


def _warn_of_videos(config: TokenPrunerConfig, family: Family, base: Any) -> None:
    """Say at once, and not only of the first clip, where videos cannot have the importance that is asked for."""
    if "video" not in family.modalities or not hasattr(base, "get_video_features"):
        return
    try:
        family.source(base, "video", config.importance_source)  # itself says where "auto" is distinctiveness
    except ValueError as error:
        logger.warning_once(f"Pictures are pruned, videos will be refused: {error}")


def _exchange(base: Any, pruner: TokenPruner) -> None:
    """Put the pruner's hooks in place of those of an earlier one, which stay where the new ones cannot be put."""
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


def detach_token_pruner(model: Any, processor: Any) -> tuple[Any, Any]:
    """Give a model and a processor their stock classes back, in place; either may be stock already.

    Args:
        model: as of `attach_token_pruner`; what is wrapped around it stays.
        processor: its processor.

    Returns:
        The same model and processor.

    Raises:
        ValueError: the model's class was changed by others since (as by FSDP2's `fully_shard`).
    """
    given, model = model, unwrapped(model)
    base = model.base_model
    for thing in (model, base, processor):
        if isinstance(thing, Attached) and type(thing) is not attached_class(thing.stock_class, thing.mixin):
            raise ValueError(
                f"{type(thing).__name__} was made of the attached {thing.stock_class.__name__} by another library "
                "(as fully_shard does), and cannot be taken apart. Detach before that."
            )
    if isinstance(base, PrunedBase):
        base.token_pruner.leave(base)
    for thing in (model, model.base_model, processor):
        if isinstance(thing, Attached):
            set_class(thing, thing.stock_class)
            thing.__dict__.pop("token_pruner", None)
    return given, processor


@contextmanager
def token_pruner(
    model: Any, processor: Any, config: TokenPrunerConfig | dict[str, Any] | str | os.PathLike[str]
) -> Iterator[tuple[Any, Any]]:
    """Attach a token pruner inside a `with` block; what was attached before comes back after it, also on errors.

    Arguments and errors as of `attach_token_pruner`. Yields model and processor.
    """
    given, model = model, unwrapped(model)
    before = [thing.__dict__.get("token_pruner") for thing in (model.base_model, processor)]
    attach_token_pruner(model, processor, config)
    try:
        yield given, processor
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
                    set_class(part, part.stock_class)
            thing.__dict__.pop("token_pruner", None)


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
    if not written_for(family, processor):
        raise ValueError(
            f"{type(processor).__name__} is not the processor of {type(model).__name__}; expected {family.processor}."
        )
    for modality in family.modalities:
        expected = family.tokens(model.config).get(modality)
        if expected is None or not hasattr(model.base_model, f"get_{modality}_features"):
            continue
        token = family.placeholder(processor, modality)
        found = processor.tokenizer.convert_tokens_to_ids(token)
        if found != expected:
            raise ValueError(
                f"The processor writes {token!r} (id {found}) for a {modality}, but the model looks for id {expected}: "
                "they do not belong together. Load both from the same folder."
            )
