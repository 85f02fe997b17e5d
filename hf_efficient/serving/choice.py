"""Which pruner is served: the one saved beside the weights, with what is given at the command line in its place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_efficient.files import is_local
from hf_efficient.files.finding import ADAPTER_CONFIG
from hf_efficient.representation.config import TokenPrunerConfig


def no_pruner(model: str) -> FileNotFoundError:
    """The error of a model without a saved pruner that is to be served without settings."""
    return FileNotFoundError(
        f"{model!r} was saved without a token pruner: say how many visual tokens to keep, such as budget=64 (1.0: all)."
    )


def is_there(model: str, error: OSError, revision: str | None = None) -> bool:
    """Whether a model is, of which a file could not be found.

    Args:
        model: folder or Hub id.
        error: of looking for the file.
        revision: of the Hub.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):  # the Hub cannot be reached
        files = (try_to_load_from_cache(model, name, revision=revision) for name in ("config.json", ADAPTER_CONFIG))
        return any(isinstance(path, str) for path in files)
    return isinstance(error, (FileNotFoundError, RemoteEntryNotFoundError))


def chosen_config(model: str, given: dict[str, Any], revision: str | None = None) -> TokenPrunerConfig | None:
    """The config to attach.

    Args:
        model: folder or Hub id.
        given: settings that take the place of saved ones; with another method, those that it does not read are left.
        revision: of the Hub.

    Returns:
        None where nothing is given: `load_token_pruned` then reads the saved one, of an adapter's base model too.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a setting is invalid.
    """
    is_local(model)  # raises if it is neither here nor on the Hub
    if not given:
        return None
    try:
        saved = TokenPrunerConfig.from_pretrained(model, **({} if revision is None else {"revision": revision}))
    except OSError:  # none is saved
        return TokenPrunerConfig.from_dict(given)
    settings = dict(given)
    method = settings.pop("method", saved.method)
    return saved.with_method(method, **settings) if method != saved.method else replace(saved, **settings)
