"""The house: what imports what, and how long things may be."""

import ast
import hashlib
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.imports import PACKAGE, circles, import_graph, modules, room

ROOT = PACKAGE.parent
FOLDERS = ("hf_efficient", "benchmarks", "examples", "spaces", "tests")
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_REPEAT = 300, 60, 8
#: What stands at the top of the repository; a tool that writes where it should not is noticed by it.
KEPT = {
    *FOLDERS, ".ci", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md",
    "LICENSE", "Makefile", "README.md", "constraints-serving.txt", "constraints.txt", "docs", "model_cards",
    "pyproject.toml", "setup.py",
}  # fmt: skip

IN_ORDER = "import sys\nfor name in sys.argv[1:]: __import__(name)"


def importable() -> list[str]:
    return [name for name in modules() if not name.endswith("__main__")]


def run(code: str, names: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_modules_can_be_imported_in_any_order() -> None:
    names = importable()
    random.Random(0).shuffle(names)
    run(IN_ORDER, names)


def test_no_module_imports_itself_through_others() -> None:
    assert circles(import_graph()) == []


def test_no_room_is_entered_from_a_room_that_it_enters() -> None:
    files = modules()
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, imported in import_graph().items():
        for other in imported:
            if room(name, files) != room(other, files):
                rooms[room(name, files)].add(room(other, files))
    assert circles(rooms) == []


def test_circles_are_found() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": []}) == [["b", "c"]]
    assert circles({"a": ["b", "c"], "b": ["d"], "c": ["d"]}) == []


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(*FOLDERS)}
    assert {path: n for path, n in lengths.items() if n > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sources(*FOLDERS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]
    assert long == []


def test_no_block_stands_twice() -> None:
    """Eight lines of code in a row, blank lines, comments and imports left out, in package and benchmarks together."""
    seen: dict[bytes, str] = {}
    twice = []
    for path in sources("hf_efficient", "benchmarks"):
        lines = code_lines(path)
        for first in range(len(lines) - LONGEST_REPEAT + 1):
            block = "\n".join(text for _, text in lines[first : first + LONGEST_REPEAT])
            here = f"{path.relative_to(ROOT)}:{lines[first][0]}"
            there = seen.setdefault(hashlib.sha256(block.encode()).digest(), here)
            if there != here:
                twice.append(f"{there} and {here}")
    assert twice == []


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines that say something: no blank ones, comments, brackets alone, or imports."""
    source = path.read_text()
    imports: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return [
        (number, line.strip())
        for number, line in enumerate(source.splitlines(), 1)
        if number not in imports and line.strip(" ()[]{},") and not line.strip().startswith("#")
    ]


def test_nothing_stray_is_kept() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: what is kept is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name]
    assert {name.split("/")[0] for name in files} <= KEPT
    assert [name for name in files if (ROOT / name).exists() and (ROOT / name).stat().st_size > 12_000_000] == []
