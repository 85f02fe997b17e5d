"""A pair of model and processor that has no file of its own proves on dummy pictures that it keeps the common rules.

Nothing of it depends on the weights: what is proven holds for all models of this class and config, with processors of
this class and these settings. The language model is not run.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from transformers import ProcessorMixin

from hf_efficient.methods import FAMILIES
from hf_efficient.representation.vlm.attached import as_stock, stock_class_of
from hf_efficient.representation.vlm.families import family_of
from hf_efficient.representation.vlm.families.family import Family
from hf_efficient.representation.vlm.families.generic import Generic

from .prove import prove
from .refusal import RULES, Unproven
from .videos import prove_videos

__all__ = ["RULES", "Unproven", "family_for", "prove"]

#: settings that say where a model comes from and how its weights are stored, not what it calculates
ORIGIN = ("architectures", "dtype", "transformers_version", "_name_or_path")

_PROVEN: dict[tuple[type, type, str], dict[tuple[type, str], Generic]] = {}
_PROVING = threading.RLock()  # a proof takes the place of the language model, which two at once would take for real


def family_for(model: Any, processor: Any = None, again: bool = False) -> Family:
    """The family of a stock model and its processor: that of a file, or else what the pair proves of itself.

    Args:
        model: with its head, with or without a pruner.
        processor: its processor, with or without a pruner; None for one that the model was proven with before.
        again: whether what an error kept from being looked at is looked at once more.

    Raises:
        ValueError: the model is none for images and text, or does not keep the rules (`Unproven`); or it does with
            several processors, in ways that differ, and none is given.
    """
    base = getattr(model, "base_model", model)
    known = getattr(getattr(model, "config", None), "model_type", None) in FAMILIES.names
    if processor is not None and not isinstance(processor, ProcessorMixin):
        raise ValueError(
            f"processor is a {type(processor).__name__}, expected a processor that holds a tokenizer and an image "
            "processor, as AutoProcessor.from_pretrained gives one for the folder of the model."
        )
    if not known and not hasattr(base, "get_image_features"):
        return family_of(model)  # raises
    if known and processor is not None and any(written_for(row.implementation, processor) for row in FAMILIES.methods):
        return family_of(model)  # even if it is that of another one: a mistake, which attaching refuses
    proven = _PROVEN.setdefault((stock_class_of(base), *_identity(model, model.config)), {})
    if processor is None:
        if not known and not proven:
            raise ValueError(
                f"{type(model).__name__} has no family of its own, and what can be proven of it needs its processor: "
                "prune_inputs(model, inputs, config, processor), or attach_token_pruner(model, processor, config)."
            )
        return _only(model, list(proven.values())) if proven else family_of(model)
    key = _identity(processor, processor)
    with _PROVING:
        if key not in proven or (again and not proven[key].final):
            try:
                with as_stock(model, base, processor):
                    family = prove(model, processor)
                    prove_videos(model, processor, family)
                proven[key] = family
            except Unproven as error:
                raise Unproven(error.rule, error.found, *_refused(model, processor, known)) from error
        return proven[key]


def _only(model: Any, proven: list[Generic]) -> Generic:
    """What a model was proven to be with every processor so far.

    Raises:
        ValueError: it depends on the processor.
    """
    if any(one.proven != proven[0].proven for one in proven):
        raise ValueError(
            f"{type(model).__name__} was proven with {len(proven)} processors, with which its tokens divide in "
            "different ways. Say which one made the inputs: prune_inputs(model, inputs, config, processor)."
        )
    return proven[0]


def _refused(model: Any, processor: Any, known: bool) -> tuple[str, str]:
    """What is said of a pair before and after the rule that it does not keep; `known`: whether the model has a file."""
    cls, name = type(processor).__name__, type(model).__name__
    if known:
        return (
            f"{cls} is not the processor of {name}; expected {family_of(model).processor}, or one that keeps this rule "
            "with it: ",
            "",
        )
    return (
        f"{name} (model_type={model.config.model_type!r}) cannot be pruned with {cls}. A pair must keep the rule that ",
        f". (Types with a file of their own need no rules: {', '.join(FAMILIES.names)}.)",
    )


def written_for(family: Family, processor: Any) -> bool:
    """Whether a processor is that of a family, or made of it."""
    return family.processor in [cls.__name__ for cls in type(processor).__mro__]


def _identity(thing: Any, settings: Any) -> tuple[type, str]:
    return stock_class_of(thing), json.dumps(_without_origin(json.loads(settings.to_json_string())), sort_keys=True)


def _without_origin(settings: Any) -> Any:
    """Settings without what saving and loading add to them."""
    if not isinstance(settings, dict):
        return settings
    return {name: _without_origin(value) for name, value in settings.items() if name not in ORIGIN}
