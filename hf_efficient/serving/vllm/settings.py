"""The pruner's config of a model that vLLM serves: where it is found, and what of it vLLM cannot do."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hf_efficient.representation.config import CONFIG_NAME, TokenPrunerConfig
from hf_efficient.representation.vlm.families.family import Family
from hf_efficient.representation.vlm.inputs import check_config, keeps_positions

logger = logging.getLogger("vllm.hf_efficient")  # below vLLM's own, whose handlers show it

#: what `--hf-overrides '{"token_pruner": ...}'` sets in the model's config
OVERRIDE = "token_pruner"
#: setting -> whether it asks for something that vLLM cannot do, why, and what to set instead
CANNOT: dict[str, tuple[Callable[[TokenPrunerConfig, Family], Any], str, str]] = {
    "positions": (
        lambda config, family: config.positions == "original" and not family.mrope,
        "it numbers the tokens of models with one-axis positions itself, without gaps",
        "'auto'",
    ),
    "question_weight": (
        lambda config, family: config.question_weight,
        "an encoded picture is cached and shared by requests with other questions",
        "0",
    ),
    "adaptive": (
        lambda config, family: config.adaptive,
        "placeholders are written before a picture is looked at",
        "False",
    ),
    "llm_layers": (
        lambda config, family: config.llm_layers,
        "all layers of a model share one table of cache blocks",
        "[]",
    ),
    "merge_copies": (
        lambda config, family: config.merge_copies is not None,
        "its encoders take whole rasters of patches",
        "None",
    ),
}


def served_config(model_config: Any) -> TokenPrunerConfig | None:
    """The pruner's config of a served model, None where it is served as it is.

    `--hf-overrides '{"token_pruner": {"budget": 64}}'` counts first: values, a folder or Hub id with a config, or null
    for a stock model; then `token_pruner_config.json` beside the model, in its folder or on the Hub. The process that
    writes placeholders and those that hold the model all ask here, so they agree on every count.

    Args:
        model_config: vLLM's `ModelConfig`.

    Raises:
        ValueError: the config is not valid.
    """
    overrides = vars(model_config.hf_config)
    given = json.dumps(overrides[OVERRIDE], sort_keys=True) if OVERRIDE in overrides else None
    return _config(str(model_config.model), getattr(model_config, "revision", None), given)


@functools.lru_cache(maxsize=16)  # asked for every picture
def _config(model: str, revision: str | None, given: str | None) -> TokenPrunerConfig | None:
    if given is not None:
        values = json.loads(given)
        return None if values is None else TokenPrunerConfig.of(values)
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return TokenPrunerConfig.from_pretrained(model, **({} if revision is None else {"revision": revision}))
    except EntryNotFoundError:
        return None  # a repository without a pruner
    except FileNotFoundError:
        logger.debug("No %s for %s: it is served as it is.", CONFIG_NAME, model)
        return None


@functools.lru_cache(maxsize=16)
def _servable(text: str, family: Family, kind: str) -> bool:
    """Raise unless a config can be served; asked once in a process for each."""
    config = TokenPrunerConfig.from_dict(json.loads(text))
    check_config(config, kind, family)
    keeps_positions(family, replace(config, proportional_attention=False))
    for name, (asks, why, instead) in CANNOT.items():
        if asks(config, family):
            raise ValueError(
                f"{name}={getattr(config, name)!r} cannot be served by vLLM: {why}. Set {name}={instead}, or serve the "
                "model with transformers."
            )
    return True


def for_engine(config: TokenPrunerConfig, family: Family, kind: str) -> TokenPrunerConfig:
    """The config as the engine runs it: whether attention counts sizes is settled, by the method's row of the table.

    Args:
        config: as `served_config` found it.
        family: the family of the model.
        kind: the model's `model_type`, for messages.

    Raises:
        ValueError: it asks for something that cannot be served; the message says why, and what to set.
    """
    _servable(json.dumps({**config.to_dict(), "generator": None}), family, kind)
    return replace(config, proportional_attention=config.wants_sizes)


def fingerprint(config: TokenPrunerConfig) -> str:
    """Tells configs apart, trained generators too: a part of the names under which encoded pictures are cached."""
    weights = b"" if config.generator is None else config.generator.to_bytes()
    return hashlib.sha256(config.to_json_string().encode() + weights).hexdigest()[:16]
