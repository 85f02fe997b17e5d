"""Settings that the chosen method does not read are refused, since they would change nothing in silence."""

from __future__ import annotations

import copy
from dataclasses import MISSING, Field, fields, replace
from typing import Any

from .row import Kind


def settings_of(kind: Kind, method: str, **settings: Any) -> dict[str, Any]:
    """Of these settings, those that a method reads: for programs whose users choose the method."""
    return {name: value for name, value in settings.items() if method in kind.readers(name)}


def check_settings(config: Any, *kinds: Kind) -> None:
    """Refuse settings that will not be read.

    Args:
        config: a dataclass. A value equal to its field's default counts as not set, and so does one that was the
            default (`kind.formerly`).
        kinds: what the configuration chooses among. Where `kind.choice` is None no method has been chosen, and nothing
            is checked.

    Raises:
        ValueError: a setting is not at its default, and the chosen method does not read it, or a condition of the
            table (`Only`) does not hold. The message names the value, the methods that read it, and what to do.
    """
    ignored: dict[str, str] = {}
    for kind in kinds:
        formerly = kind.formerly  # what every file of then says, and so nothing that somebody asked for
        unasked = [name for name, value in formerly.items() if getattr(config, name, None) == value]
        ignored |= {name: why for name, why in unread(config, kind).items() if name not in unasked}
    if ignored:
        raise ValueError(f"{'; '.join(ignored.values())}. Leave it out, or choose what reads it.")


def unread(config: Any, kind: Kind) -> dict[str, str]:
    """The settings of `config` that are not at their default and will not be read: name -> a sentence that says why."""
    chosen = getattr(config, kind.choice)
    if chosen is None:
        return {}
    ignored: dict[str, str] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if value == _default(field):
            continue
        readers = kind.readers(field.name)
        if chosen not in readers:
            others = ", ".join(map(repr, readers))
            ignored[field.name] = f"{field.name}={value!r} is not read by {kind.choice}={chosen!r}, only by {others}"
            continue
        for only in (*kind.only, *kind.row(chosen).only):
            if only.setting == field.name and not only.read(config):
                ignored[field.name] = f"{field.name}={value!r} is read only with {only.where}"
    return ignored


def with_method(config: Any, kind: Kind, method: str, **changes: Any) -> Any:
    """A configuration like `config` for another method: settings that this one does not read go back to their default.

    Args:
        config: a dataclass that `check_settings` accepts.
        kind: what it chooses among.
        method: a name of `kind`.
        changes: other fields.

    Raises:
        ValueError: the method is not known, or a changed value is not valid.
    """
    draft = copy.copy(config)
    vars(draft).update(changes, **{kind.choice: method})
    defaults = {field.name: _default(field) for field in fields(config)}
    dropped = {name: defaults[name] for name in unread(draft, kind) if name not in changes}
    return replace(config, **{kind.choice: method}, **changes, **dropped)


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default
