"""Every private or undocumented name of a library stands in hf_efficient/compat, and is there in what is installed."""

import ast
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_efficient.compat import names
from hf_efficient.compat.names import READ_IN, changed, changes, count, report
from tests.imports import PACKAGE

LIBRARIES = {*READ_IN, "huggingface_hub"}
#: Private names of Python's own library.
OF_PYTHON = {"_actions", "_SubParsersAction", "_getframe", "_replace", "_name_", "_value_"}


def test_private_names_are_as_they_were_read() -> None:
    lines = [line for library in READ_IN for line in changes(library)]
    assert not lines, "Mend hf_efficient/compat, and what uses it:\n" + "\n".join(lines)


def test_a_removed_name_and_a_changed_signature_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_library_that_is_not_installed_changes_nothing_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_library").mkdir()
    (tmp_path / "made_library/__init__.py").write_text("")
    (tmp_path / "made_library/optional.py").write_text("import a_library_that_is_absent\n\nused = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert changed(("made_library.optional:used",), {}, {}) == []
    (line,) = changed(("made_library.removed:used",), {}, {})
    assert line.startswith("made_library.removed:used is gone")


def test_a_name_that_compat_imports_and_that_is_gone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft.tuners.tuners_utils

    monkeypatch.delattr(peft.tuners.tuners_utils, "_ExcludedModule")
    (line,) = changes("peft")
    assert "peft.tuners.tuners_utils:_ExcludedModule is gone" in line


def test_a_report_has_a_line_for_each_library(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("fake")
    fake.READ = ("os:getcwd", "os:no_such_name")  # type: ignore[attr-defined]
    fake.CALLED = {"os.path:join": ("first", "second")}  # type: ignore[attr-defined]
    real = names.tables
    monkeypatch.setattr(names, "tables", lambda library: fake if library == "numpy" else real(library))
    monkeypatch.setattr(names, "READ_IN", {"accelerate": "1.15.0", "numpy": "2.0", "no_such_library": "3.0"})
    text, all_found = report()
    lines = text.splitlines()
    assert lines[0].endswith(f"(read in 1.15.0): all {count(real('accelerate'))} names found")
    assert lines[1].endswith("(read in 2.0): 2 of 3 names changed")
    assert [line.partition(" (")[0] for line in lines[2:4]] == ["  os:no_such_name is gone", "  os.path:join takes"]
    assert lines[4:] == ["no_such_library: not installed (read in 3.0)"]
    assert not all_found


def test_the_report_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "hf_efficient.compat"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert [line.split()[0].rstrip(":") for line in done.stdout.splitlines()] == list(READ_IN)


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


def read_name(node: ast.AST) -> str:
    """The name in `x.name` and in `getattr(x, "name")`, or "" in anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
        second = node.args[1]
        if node.func.id in {"getattr", "hasattr", "setattr", "delattr"} and isinstance(second, ast.Constant):
            return str(second.value)
    return ""


def test_names_in_strings_are_seen() -> None:
    (line,) = ast.parse('hasattr(x, "_name")').body
    assert isinstance(line, ast.Expr)
    assert read_name(line.value) == "_name"


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


def test_what_is_imported_of_a_library_s_inner_modules_is_listed() -> None:
    """Also where it is documented and may be imported anywhere: a new release may move it."""
    known = set(listed("READ", "CALLED")) | {"logging"}  # transformers.utils.logging
    libraries = set(READ_IN) - {"torch"}
    found = []
    for path, tree in outside():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                library, _, inner = node.module.partition(".")
                unlisted = [a.name for a in node.names if inner and library in libraries and a.name not in known]
                found += [f"{path.relative_to(PACKAGE)}:{node.lineno} {name}" for name in unlisted]
    assert found == []


def test_private_methods_outside_compat_are_those_it_lists() -> None:
    """A method can only be overridden, and its stock form be called, in a subclass; all others go through compat."""
    allowed = set(listed("OVERRIDDEN", "CALLED")) | own_names() | OF_PYTHON
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}"
        for path, tree in outside()
        for node in ast.walk(tree)
        if isinstance(node, (ast.Attribute, ast.Call))
        for name in [read_name(node)]
        if is_private(name) and name not in allowed
    ]
    assert found == []
