"""Compare the private names of a library with the table of those that were read."""

import inspect
from collections.abc import Iterable, Mapping
from functools import reduce
from importlib import import_module
from typing import Any


def look_up(where: str) -> Any:
    """The object of "module:qualified.name"."""
    module, _, name = where.partition(":")
    return reduce(getattr, name.split("."), import_module(module))


def changes(read: Iterable[str], called: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A line for each name that is gone or has other parameters."""
    lines = []
    for where in (*read, *called):
        try:
            found = look_up(where)
        except (ImportError, AttributeError):
            lines.append(f"{where} is gone")
            continue
        if where in called and tuple(inspect.signature(found).parameters) != called[where]:
            lines.append(f"{where} has parameters {tuple(inspect.signature(found).parameters)}, not {called[where]}")
    return lines
