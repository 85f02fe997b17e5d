"""Every command that a page or a docstring names exists, and takes the options that are written there."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"python -m ((?:benchmarks|examples)\.[\w.]*\w)([^`\n]*)")
TARGET = re.compile(r"make (bench-[a-z0-9-]+)")
PAGES = ("*.md", "docs/*.md", "model_cards/*.md", "hf_efficient/assets/**/*.md", "benchmarks/**/*.md")
CODE = ("benchmarks/**/*.py", "examples/*.py")


def texts() -> Iterator[tuple[str, str]]:
    """Names and texts of pages, and of the docstrings of what can be run."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for pattern in CODE:
        for path in sorted(ROOT.glob(pattern)):
            yield str(path.relative_to(ROOT)), ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def commands() -> dict[tuple[str, str], str]:
    """(module, options) -> a place where that is written."""
    return {(found[1], found[2].strip()): name for name, text in texts() for found in COMMAND.finditer(text)}


def offered(module: str) -> re.Pattern[str]:
    """Matches the options in an example's source: strings, f-strings, and the names of its dataclasses' fields."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    annotated = [f.target for c in classes for f in c.body if isinstance(f, ast.AnnAssign)]
    fields = [target.id for target in annotated if isinstance(target, ast.Name)]
    exact = [s for s in strings if s.startswith("--")] + [f"--{name}" for name in fields]
    formatted = [
        "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"[\w-]+" for part in node.values)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) and str(getattr(node.values[0], "value", "")).startswith("--")
    ]
    return re.compile("|".join([*map(re.escape, exact), *formatted]) or "$.")


def test_commands_of_the_benchmarks_parse(capsys: pytest.CaptureFixture[str]) -> None:
    wrong, named = [], commands()
    assert sum(module.startswith("benchmarks.") for module, _ in named) > 30
    for (module, options), where in named.items():
        if not module.startswith("benchmarks."):
            continue
        words = shlex.split(options, comments=True)
        try:
            if words:
                importlib.import_module(module).parser().parse_args(words)
            else:
                assert "def parser()" in (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        except (SystemExit, ImportError, OSError, AssertionError, AttributeError):
            wrong.append(f"{where}: {module} {options} {capsys.readouterr().err.strip()[-200:]}")
    assert wrong == []


COUNTS = [
    ("equal_footing", "choose --scenes"), ("equal_footing", "choose --validation-scenes"), ("failures", "--scenes"),
    ("token_retention", "--scenes"), ("where_tokens_know", "--scenes"), ("video_retention", "--clips"),
    ("video_retention", "--frames"), ("copied_patches", "--pictures"), ("field_retention", "--limit"),
]  # fmt: skip


@pytest.mark.parametrize("value", ["0", "-1", "many"])
@pytest.mark.parametrize(("module", "words"), COUNTS)
def test_counts_of_scenes_that_mean_nothing_are_refused_at_once(
    module: str, words: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = importlib.import_module(f"benchmarks.representation.{module}").parser()
    with pytest.raises(SystemExit):
        options.parse_args([*words.split(), value])
    assert f"{words.split()[-1]}: {value!r} is not a whole number >= 1" in capsys.readouterr().err
    assert options.parse_args([*words.split(), "3"])


def test_commands_of_the_examples_name_options_that_exist() -> None:
    from transformers import TrainingArguments

    from hf_efficient import SAMArguments

    classes = (TrainingArguments, SAMArguments)  # which some examples parse beside their own
    inherited = {f"--{name}" for of in classes for name in of.__dataclass_fields__}
    named = {key: where for key, where in commands().items() if key[0].startswith("examples.")}
    assert len(named) > 5
    missing = [module for module, _ in named if not (ROOT / f"{module.replace('.', '/')}.py").is_file()]
    assert missing == []
    unknown = []
    for (module, options), where in named.items():
        written = {word.partition("=")[0] for word in shlex.split(options, comments=True) if word.startswith("--")}
        unknown += [f"{where}: {module} {o}" for o in sorted(written - inherited) if not offered(module).fullmatch(o)]
    assert unknown == []


def test_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {target: name for name, text in texts() for target in TARGET.findall(text)}
    assert named
    for target, where in named.items():
        file = f"{target.removeprefix('bench-').replace('-', '_')}.py"
        assert f"\n{target}:" in makefile or len(list(ROOT.glob(f"benchmarks/*/{file}"))) == 1, (where, target)


def test_every_benchmark_is_in_the_table_and_shows_its_parser() -> None:
    table = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    runnable = [p for p in sorted(ROOT.glob("benchmarks/*/*.py")) if "__main__" in p.read_text(encoding="utf-8")]
    assert len(runnable) > 20
    for path in runnable:
        if path.parent.name != "harness":
            assert f"benchmarks.{path.parent.name}.{path.stem}" in table, path
            assert "\ndef parser() -> argparse.ArgumentParser:" in path.read_text(encoding="utf-8"), path
