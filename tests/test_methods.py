"""The table of methods, what is made of it, and the refusal of settings that a method does not read."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any

import pytest

from hf_efficient import BiDSTConfig, FitSettings, SAMArguments, TokenPrunerConfig
from hf_efficient.cli import main
from hf_efficient.methods import KINDS, Kind, Method, Only, check_settings
from hf_efficient.methods.config_defaults import config_defaults
from hf_efficient.methods.pages import paper_index
from hf_efficient.methods.row import NEEDS
from tests.conftest import ROOT

TREES = Kind(
    budget="shade",
    choice="tree",
    call="Tree({})",
    runs="in gardens",
    page="trees.md",
    methods=(
        Method("oak", "grows slowly", "trees:Oak", reads=("acorns",)),
        Method("pine", "is always green", "trees:Pine", reads=("cones", "resin"),
               only=(Only("resin", lambda c: c.cut, "cut=True"),)),
        Method("yew", "outlives us", "trees:Yew"),
    ),
)  # fmt: skip


@dataclass
class Tree:
    tree: str | None = None
    height: float = 1.0
    acorns: list[int] = field(default_factory=list)
    cones: int = 3
    resin: float | None = None
    cut: bool = False

    def __post_init__(self) -> None:
        check_settings(self, TREES)


def test_what_every_method_reads_and_what_is_at_its_default_is_never_refused() -> None:
    for tree in (None, "oak", "pine", "yew"):
        Tree(tree, height=2.0, acorns=[], cones=3, resin=None)
    Tree("oak", acorns=[1])
    Tree("pine", cones=5, resin=0.5, cut=True)
    Tree(None, acorns=[1], cones=5)  # no method yet: nothing can be said


def test_a_setting_of_another_method_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"cones=5 is not read by tree='oak', only by 'pine'\. Leave it out"):
        Tree("oak", cones=5)
    with pytest.raises(ValueError, match=r"acorns=\[1\] is not read .*; cones=5 is not read "):
        Tree("yew", acorns=[1], cones=5)


def test_a_setting_that_another_setting_switches_off_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resin=0\.5 is read only with cut=True"):
        Tree("pine", resin=0.5)
    with pytest.raises(ValueError, match="not read by tree='oak'"):
        Tree("oak", resin=0.5)


NAMES = [(kind, method) for kind in KINDS for method in kind.methods]
PAGES = {page: (ROOT / "docs" / page).read_text() for page in {m.page or k.page for k, m in NAMES}}


@pytest.mark.parametrize(("kind", "method"), NAMES, ids=lambda part: getattr(part, "name", ""))
def test_every_row_leads_to_code_and_to_a_page_that_names_it(kind: Kind, method: Method) -> None:
    assert method.implementation is not None
    assert re.search(rf"\b{re.escape(method.name)}\b", PAGES[method.page or kind.page]), "its page does not name it"
    assert set(method.needs) <= set(NEEDS)
    if kind.config:
        assert set(method.reads) | set(method.defaults) | set(method.published) <= set(config_defaults(kind.config)) | {
            "llm_layers"
        }


def test_no_two_methods_have_one_name() -> None:
    names = [method.name for _, method in NAMES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.config], ids=lambda kind: kind.budget)
def test_the_defaults_that_a_card_shows_are_those_of_the_configuration(kind: Kind) -> None:
    module, _, name = kind.config.partition(":")
    config = getattr(import_module(module), name)
    real = {field.name: field.default for field in fields(config)}
    shown = config_defaults(kind.config)
    assert {name for method in kind.methods for name in method.reads} <= set(shown)
    assert {name: real[name] for name in shown} == shown


def test_the_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for kind, method in NAMES:
        assert f"{kind.budget} ({kind.choice}=...)" in lines
        assert any(re.fullmatch(rf"  {method.name} +{re.escape(method.line)}", line) for line in lines)


@pytest.mark.parametrize(("kind", "method"), NAMES, ids=lambda part: getattr(part, "name", ""))
def test_a_card_says_what_the_row_says(kind: Kind, method: Method, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", method.name]) == 0
    card = " ".join(capsys.readouterr().out.split())
    said = [method.line, f"docs/{method.page or kind.page}", method.where.partition(":")[0], kind.runs, *method.reads]
    said += [NEEDS[need] for need in method.needs]
    said += [method.paper.title, method.paper.arxiv or method.paper.venue] if method.paper else []
    assert [text for text in said if text not in card] == []


def test_an_unknown_method_is_one_line_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "rigel"]) == 2
    assert "'rigel' is not a method. Did you mean 'rigl'?" in capsys.readouterr().err
    assert main(["methods", "itg", "--paper-index"]) == 2
    assert "--paper-index prints all papers; leave 'itg' out" in capsys.readouterr().err


def test_the_command_imports_neither_torch_nor_peft() -> None:
    code = (
        "import sys; from hf_efficient.cli import main; main(['methods', 'bidst']); main(['methods', '--paper-index']);"
        "print([m for m in ('torch', 'transformers', 'numpy', 'peft') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.endswith("\n[]\n")


def test_the_paper_index_is_what_the_table_says() -> None:
    assert (ROOT / "docs/paper_index.md").read_text() == paper_index(KINDS), "run `make pages`"


def test_all_arguments_of_the_paper_index_are_accepted() -> None:
    made: list[Any] = []
    names = {
        name: lambda *_, _make=make, **settings: made.append(_make(**settings))
        for name, make in (("TokenPrunerConfig", TokenPrunerConfig), ("SAMArguments", SAMArguments),
                           ("BiDSTConfig", BiDSTConfig), ("fit_video", FitSettings))
    }  # fmt: skip
    for block in re.findall(r"```python\n(.*?)```", paper_index(KINDS), re.DOTALL):
        calls = [line for line in block.splitlines() if line and not line.startswith(("#", "from"))]
        assert calls
        for call in calls:
            eval(call, dict(names))
    papers = sum(method.paper is not None for _, method in NAMES) + sum(len(kind.settings) for kind in KINDS)
    assert len(made) == papers


CHOICES = {kind.choice: tuple(k.name for kk in KINDS if kk.choice == kind.choice for k in kk.methods) for kind in KINDS}
# names that are words of English or of the code, too: compared with a setting that chooses a method only
WORDS = {"random", "uniform", "static", "set", "time", "single", "sam", "stdo", "delta"}
DISTINCT = {method.name for _, method in NAMES} - WORDS
OF_METHODS = {method.where.partition(":")[0] for _, method in NAMES}


def compared_with_methods(source: str) -> list[int]:
    """Lines in which a value is compared with, or looked up by, the name of a method."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare():
                sides: list[ast.AST] = [node.left, *node.comparators]
            case ast.Match():
                sides = [node.subject, *(case.pattern for case in node.cases)]
            case ast.Dict():
                sides = [key for key in node.keys if key is not None]
            case _:
                continue
        parts = [part for side in sides for part in ast.walk(side)]
        texts = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
        words = texts | {getattr(part, "id", getattr(part, "attr", "")) for part in parts}
        names = {name for choice, of_choice in CHOICES.items() for name in of_choice if choice in words}
        if isinstance(node, ast.Dict):
            found = len(texts) > 1 and any(texts <= set(of_choice) for of_choice in CHOICES.values())
        else:
            found = bool(texts & (names | DISTINCT))
        if found:
            lines.append(node.lineno)
    return lines


def test_shared_code_asks_for_no_method_by_name() -> None:
    asked = {}
    for path in sorted((ROOT / "hf_efficient").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if "methods" not in path.relative_to(ROOT).parts[:2] and module not in OF_METHODS:
            asked[module] = compared_with_methods(path.read_text())
    assert {module: lines for module, lines in asked.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("if config.method == 'itg': pass", True),
        ("if name in ('rigl', other): pass", True),
        ("if config.topology != 'static': pass", True),
        ("match self.method:\n    case 'sam': pass", True),
        ("TABLE = {'set': SET, 'rigl': RigL}", True),
        ("if config.init == 'random': pass", False),
        ("if values['model_type'] != 'stdo': pass", False),
        ("METHOD = config.method or 'sam'", False),
    ],
)
def test_the_check_finds_what_it_looks_for(source: str, found: bool) -> None:
    assert bool(compared_with_methods(source)) == found
