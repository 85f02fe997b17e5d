"""What a user gets by installing the package: names, types, metadata, a cheap import, commands that exist."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hf_efficient


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_is_cheap_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import hf_efficient; seconds = time.perf_counter() - start;"
        "print(seconds, [m for m in ('torch', 'transformers', 'numpy', 'PIL', 'huggingface_hub') if m in sys.modules])"
    )
    seconds, heavy = min(run_python(code).split(maxsplit=1) for _ in range(3))  # the best of three: others may be busy
    assert heavy.strip() == "[]"
    assert float(seconds) < 0.3


def test_command_line_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hf_efficient.cli import build_parser; build_parser().format_help();"
        "print([m for m in ('torch', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_every_public_name_resolves_where_the_table_says() -> None:
    assert set(hf_efficient._MODULE_OF) == set(hf_efficient.__all__) - {"__version__"}
    for name, module in hf_efficient._MODULE_OF.items():
        value = getattr(hf_efficient, name)
        assert value.__module__ == module, name
        assert value.__doc__, f"{name} has no docstring"
    assert set(hf_efficient.__all__) <= set(dir(hf_efficient))


def test_table_and_type_checker_imports_agree() -> None:
    source = Path(hf_efficient.__file__).read_text()
    block = source.split("if TYPE_CHECKING:")[1].split("__all__")[0]
    seen: dict[str, str] = {}
    for module, names in re.findall(r"from ([\w.]+) import (\([^)]*\)|[^\n]+)", block):
        seen |= dict.fromkeys(re.findall(r"\w+", names), module)
    assert seen == hf_efficient._MODULE_OF


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TokenPrunerConfiguration'"):
        _ = hf_efficient.TokenPrunerConfiguration


def test_version_is_the_same_everywhere(repository: Path) -> None:
    assert importlib.metadata.version("hf-efficient") == hf_efficient.__version__
    citation = (repository / "CITATION.cff").read_text()
    assert f"\nversion: {hf_efficient.__version__}\n" in citation


def test_metadata_bounds() -> None:
    metadata = importlib.metadata.metadata("hf-efficient")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra") or []) >= {"vlm", "vllm", "video", "spaces", "bench", "dev"}
    required = [line for line in importlib.metadata.requires("hf-efficient") or [] if "extra ==" not in line]
    assert any(re.fullmatch(r"transformers(<6,>=5\.16\.1|>=5\.16\.1,<6)", line) for line in required), required


def test_constraints_satisfy_every_requirement(repository: Path) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (repository / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(n): v for n, v in (line.split("==") for line in lines if line and line[0] != "#")}
    for line in importlib.metadata.requires("hf-efficient") or []:
        requirement = Requirement(line)
        if 'extra == "vllm"' in str(requirement.marker):  # an environment of its own: constraints-serving.txt
            continue
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), (
            f"{name}=={pinned[name]} is outside {requirement.specifier}"
        )


def test_wheel_ships_types_and_assets(repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(repository / "hf_efficient", source / "hf_efficient", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {str(p.relative_to(source)) for p in (source / "hf_efficient").rglob("*") if p.is_file()}
    assert "hf_efficient/py.typed" in names
    assert {n for n in names if n.startswith("hf_efficient/")} == shipped
    assert not any(n.startswith("tests/") for n in names)


def test_commands_of_the_readme_exist(repository: Path) -> None:
    readme, makefile = (repository / "README.md").read_text(), (repository / "Makefile").read_text()
    set_up = re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE)
    assert set_up == ["demo", "test"], "the README shows exactly two set-up commands"
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) | {
        f"bench-{name}" for name in programs(repository)
    }
    assert {"demo", "test", "test-slow", "lint", "docs", "clean"} <= targets
    pages = [readme, *(page.read_text() for page in [repository / "CONTRIBUTING.md", *repository.glob("docs/*.md")])]
    named = {
        t for page in pages for t in re.findall(r"`(?:make )?(bench-[a-z-]+)`|`make ([a-z-]+)", page) for t in t if t
    }
    assert named <= targets, f"pages name targets that do not exist: {named - targets}"


def test_a_benchmark_s_target_runs_its_program(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    assert "benchmarks/*/$(subst -,_,$*).py" in makefile, "bench-% runs any program by its name"
    named = re.findall(r"-m benchmarks\.\w+\.(\w+)", makefile.split("bench-%")[0])
    assert named
    assert {name.replace("_", "-") for name in named} <= programs(repository)


def programs(repository: Path) -> set[str]:
    """Benchmarks that can be run, as targets write them."""
    found = [p for p in (repository / "benchmarks").glob("*/*.py") if "__main__" in p.read_text()]
    return {p.stem.replace("_", "-") for p in found}


def test_py_typed_is_empty_and_present() -> None:
    assert (Path(hf_efficient.__file__).parent / "py.typed").read_text() == ""
