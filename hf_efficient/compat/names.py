"""Goes through the names that the modules of this folder list, and tells what an installed release has not."""

from __future__ import annotations

import inspect
from functools import reduce
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: Library -> the release in which its names were read. A module of this folder for each.
READ_IN = {
    "torch": "2.14.1",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "trl": "1.16.0",
    "diffusers": "0.42.1",
    "gradio": "6.31.0",
}


def look_up(where: str) -> Any:
    """What "module:name.name" is.

    Raises:
        ImportError, AttributeError: there is no such module or name.
    """
    module, _, name = where.partition(":")
    return reduce(getattr, name.split("."), import_module(module))


def changes(library: str) -> list[str]:
    """What is absent from the installed release of a library, or has other parameters; [] where it is not installed."""
    try:
        installed = version(library)
    except PackageNotFoundError:
        return []
    table = import_module(f"hf_efficient.compat.{library}")
    parameters = {**getattr(table, "CALLED", {}), **getattr(table, "OVERRIDDEN", {})}
    found = changed(tuple(getattr(table, "READ", ())), parameters, getattr(table, "IN_SOURCE", {}))
    return [f"{library} {installed} (read in {READ_IN[library]}): {line}" for line in found]


def changed(
    read: tuple[str, ...], parameters: dict[str, tuple[str, ...]], in_source: dict[str, tuple[str, ...]]
) -> list[str]:
    """One line for each name that is gone or has changed.

    Args:
        read: "module:name" of what must exist.
        parameters: "module:name" -> names of its parameters.
        in_source: "module:name" -> words that its source must contain.
    """
    lines = []
    for where in dict.fromkeys((*read, *parameters, *in_source)):
        try:
            found = look_up(where)
        except (ImportError, AttributeError, RuntimeError) as error:  # transformers and diffusers raise RuntimeError
            lines.append(f"{where} is gone ({error})")
            continue
        if where in parameters:
            now, expected = tuple(inspect.signature(found).parameters), parameters[where]
            if now != expected:
                lines.append(f"{where} takes ({', '.join(now)}), not ({', '.join(expected)})")
        for word in in_source.get(where, ()):
            if word not in inspect.getsource(found):
                lines.append(f"{where} has no {word} any more")
    return lines


def count() -> int:
    """How many names of the installed libraries are listed."""
    total = 0
    for library in READ_IN:
        try:
            version(library)
        except PackageNotFoundError:
            continue
        table = import_module(f"hf_efficient.compat.{library}")
        total += sum(len(getattr(table, kind, ())) for kind in ("READ", "CALLED", "OVERRIDDEN", "IN_SOURCE"))
    return total
