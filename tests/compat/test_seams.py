"""Every private or undocumented name of a library stands in hf_efficient/compat, and is there in what is installed."""

import ast
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_efficient.compat.names import READ_IN, changed, changes
from tests.imports import PACKAGE

LIBRARIES = {*READ_IN, "huggingface_hub"}
#: Private names of Python's own library.
OF_PYTHON = {"_actions", "_SubParsersAction", "_getframe", "_replace", "_name_", "_value_"}


def test_private_names_are_as_they_were_read() -> None:
    lines = [line for library in READ_IN for line in changes(library)]
    assert not lines, "Mend hf_efficient/compat, and what uses it:\n" + "\n".join(lines)


def test_a_removed_name_and_a_changed_signature_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    fake = types.ModuleType("fake_library")

    class Thing:
        def call(self, x: int, y: int) -> None:
            self.kept = x + y

    fake.Thing = Thing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_library", fake)
    lines = changed(
        ("fake_library:Thing", "fake_library:Thing.gone", "no_such_library:x"),
        {"fake_library:Thing.call": ("self", "x")},
        {"fake_library:Thing.call": ("self.kept", "self._lost")},
    )
    assert [line.partition(" (")[0] for line in lines] == [
        "fake_library:Thing.gone is gone",
        "no_such_library:x is gone",
        "fake_library:Thing.call takes",
        "fake_library:Thing.call has no self._lost any more",
    ]
    assert "takes (self, x, y), not (self, x)" in lines[2]


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def outside() -> Iterator[tuple[Path, ast.Module]]:
    yield from ((path, tree) for path, tree in sources() if "compat" not in path.relative_to(PACKAGE).parts)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names() -> set[str]:
    """Private names that the package itself defines."""
    names: set[str] = set()
    for _, tree in outside():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def listed(*kinds: str) -> dict[str, str]:
    """Last part of each name in the tables -> where it is."""
    from importlib import import_module

    tables = [import_module(f"hf_efficient.compat.{library}") for library in READ_IN]
    return {
        where.rpartition(".")[2].rpartition(":")[2]: where for t in tables for k in kinds for where in getattr(t, k, ())
    }


def test_private_names_are_imported_in_compat_alone() -> None:
    tables = listed("READ", "CALLED")
    found = []
    for path, tree in outside():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
                private = [a.name for a in node.names if is_private(a.name)]
                private += [p for p in (node.module or "").split(".") if is_private(p)]
                found += [f"{path.relative_to(PACKAGE)}:{node.lineno} {node.module} {name}" for name in private]
    assert found == [], f"import them through hf_efficient/compat, which lists {len(tables)}"


def test_private_methods_outside_compat_are_those_it_lists() -> None:
    """A method can only be overridden, and its stock form be called, in a subclass; all others go through compat."""
    allowed = set(listed("OVERRIDDEN", "CALLED")) | own_names() | OF_PYTHON
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}"
        for path, tree in outside()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in allowed
    ]
    assert found == []
