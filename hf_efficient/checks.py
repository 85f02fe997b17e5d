"""Checks of settings in one wording: a message begins with setting and value, and says what is expected."""

from __future__ import annotations

import numbers
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_efficient.reading import is_number, is_whole, shown


def plain_numbers(settings: Any) -> None:
    """Make every number among a dataclass's fields Python's own, in place: float32 of numpy, a fraction, and the like.

    So that checks, JSON files and messages know int and float alone.
    """
    for one in fields(settings):
        value = getattr(settings, one.name)
        if type(value) in (bool, int, float):
            continue
        if isinstance(value, numbers.Integral):
            setattr(settings, one.name, int(value))
        elif isinstance(value, numbers.Real):
            setattr(settings, one.name, float(value))


def check_model(
    value: object, expected: str = "a torch.nn.Module, e.g. a model of transformers, loaded", name: str = "model"
) -> None:
    """Raise TypeError unless the value is a torch module; `name` is the argument's."""
    from torch import nn

    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}={shown(value)} is not a model; expected {expected}.")


def checked_path(name: str, value: object) -> Path:
    """The path that a value is or names; TypeError if it is of another kind."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}={shown(value)} is not a path; expected one, as a string or a pathlib.Path.")
    return Path(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={shown(value)} is not known; expected one of {', '.join(map(repr, choices))}.")


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ValueError unless the value is an int from `least` to `most`; None is no upper bound."""
    if not is_whole(value) or value < least or (most is not None and value > most):  # type: ignore[operator]
        bounds = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={shown(value)} is out of range; expected a whole number {bounds}.")


def check_bool(name: str, value: object, left_open: str = "") -> None:
    """Raise ValueError unless the value is True or False, or None, where `left_open` says what None means."""
    if isinstance(value, bool) or (value is None and left_open):
        return
    expected = f"True, False or None ({left_open})" if left_open else "True or False"
    raise ValueError(f"{name}={shown(value)} is not allowed; expected {expected}.")


def check_number(
    name: str, value: object, low: float, high: float, expected: str, below: bool = False, above: bool = False
) -> None:
    """Raise ValueError unless the value is a finite number from `low` to `high`, or below `high`.

    Args:
        name: of the setting.
        value: of the setting.
        low: smallest value allowed.
        high: largest value allowed; may be infinite.
        expected: what the message says after "expected".
        below: exclude `high` itself.
        above: exclude `low` itself.
    """
    fits = is_number(value) and low <= value <= high  # type: ignore[operator]
    if not fits or (below and value == high) or (above and value == low):
        raise ValueError(f"{name}={shown(value)} is out of range; expected {expected}.")
