"""Code in the pages: it is Python, what it imports is there, settings are taken, and commands are understood."""

import ast
import builtins
import importlib
import json
import re
import shlex
import textwrap
from collections.abc import Iterator

import pytest

import hf_efficient
from hf_efficient.cli import build_parser
from tests.conftest import ROOT

#: docs/adding.md makes methods that are not there; `test_adding.py` runs it.
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "*/*/README.md", "model_cards/*.md")
    for page in ROOT.glob(pattern)
    if page.name != "adding.md"
)
CONFIGS = ("TokenPrunerConfig", "SAMArguments", "BiDSTConfig", "EfficiencyPlan", "FitSettings", "STDOConfig")


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and number, code) of all pages."""
    found = []
    for page in PAGES:
        codes = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
        found += [(f"{page.relative_to(ROOT)}-{i}", textwrap.dedent(code)) for i, code in enumerate(codes)]
    return found


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of what is imported from somewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


def made_of_settings(tree: ast.AST) -> Iterator[str]:
    """Calls of configurations whose arguments are known: constants, and other configurations."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CONFIGS:
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            if names <= set(CONFIGS) and not any(isinstance(n, ast.Starred) for n in ast.walk(node)):
                yield ast.unparse(node)


@pytest.mark.parametrize(("where", "code"), blocks("python"), ids=lambda value: value if "\n" not in value else "")
def test_python_of_a_page(where: str, code: str) -> None:
    tree = ast.parse(code, where)
    for module, name in imported(tree):
        if module.partition(".")[0] in ("hf_efficient", "transformers", "peft", "torch", "trl", "diffusers"):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
    for call in made_of_settings(tree):
        if "generator=" not in call and "..." not in call:  # a file of the user's
            eval(call, {name: getattr(hf_efficient, name) for name in CONFIGS})


def commands() -> list[tuple[str, str]]:
    """(where, line) of our commands in all pages."""
    found = []
    for where, code in blocks("bash"):
        lines = re.sub(r"\\\n\s*", " ", code).splitlines()
        found += [(where, line.strip()) for line in lines if line.strip().startswith("hf-efficient ")]
    return found


@pytest.mark.parametrize(("where", "line"), commands())
def test_a_command_is_understood(where: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&", "&", ";")]
    given = words[: ends[0]] if ends else words
    assert build_parser().parse_args(given).command == given[0], where


def test_code_was_found() -> None:
    assert len(blocks("python")) > 60
    assert len(commands()) > 20


def classes_of(codes: list[str]) -> tuple[set[str], set[str]]:
    """Names that some codes import or define, and names of classes that they use."""
    known, used = set(dir(builtins)), set()
    for node in (node for code in codes for node in ast.walk(ast.parse(code))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            known |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
        elif isinstance(node, ast.Name) and node.id[0].isupper():
            used.add(node.id)
    return known, used


@pytest.mark.parametrize("page", sorted({where.rpartition("-")[0] for where, _ in blocks("python")}))
def test_a_page_imports_the_classes_that_its_code_uses(page: str) -> None:
    """Who copies its lines knows where each class comes from."""
    known, used = classes_of([code for where, code in blocks("python") if where.rpartition("-")[0] == page])
    assert not used - known


def test_the_small_model_of_the_quick_start_is_there_with_its_picture_and_question() -> None:
    text = (ROOT / "docs" / "quick_start.md").read_text()
    model, picture = re.findall(r"hf_efficient/assets/[\w/.]+\w", text)
    (question,) = re.findall(r'"<image> (what [^"]*)"', text)
    assert (ROOT / model / "model.safetensors").is_file()
    lines = (ROOT / picture).parents[1].joinpath("metadata.jsonl").read_text().splitlines()
    (asked,) = [row["questions"] for row in map(json.loads, lines) if picture.endswith(row["file_name"])]
    assert question in {one["question"] for one in asked}
