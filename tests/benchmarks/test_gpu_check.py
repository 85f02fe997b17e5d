"""The check on a GPU, tried on the CPU: its parts at tiny sizes, and that no part takes the others along."""

import argparse
import dataclasses
import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu.correctness import correctness
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import TINY, Sizes
from benchmarks.harness.results import read_json

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", gpu_check.PARTS)
def test_every_part_finds_what_it_should_on_a_cpu(name: str, tmp_path: Path) -> None:
    part, found = gpu_check.PARTS[name], Findings(tmp_path / "found.json")
    getattr(importlib.import_module(part.module), part.function)("cpu", TINY, found)
    assert len(found.rows) > 4
    assert [row for row in found.rows if row["holds"] is False] == []
    assert read_json(tmp_path / "found.json", None) == found.rows
    assert not [row for row in found.rows if row["at_most"] is not None and "ms" in row["what"]]  # no time has a bound


def test_the_parts_fit_ten_minutes() -> None:
    assert sum(part.seconds for part in gpu_check.PARTS.values()) < 600


def command(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command on the CPU, at tiny sizes."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check",
        "--device",
        "cpu",
        "--tiny",
        "--output",
        str(folder),
        *options,
    ]
    kept = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=kept)


def test_a_bare_machine_and_a_part_out_of_time(tmp_path: Path) -> None:
    """Without transformers every part fails by itself, and says by what; the command needs torch alone."""
    (tmp_path / "transformers.py").write_text("raise ImportError('none here')\n")
    bare = command(tmp_path / "a", "--parts", "itg", "sam", PYTHONPATH=str(tmp_path))
    parts = read_json(tmp_path / "a/results.json", {})["parts"]
    assert bare.returncode == 1
    assert {name: part["ended"] for name, part in parts.items()} == dict.fromkeys(
        ("itg", "sam"), "failed: ImportError: none here"
    )
    assert "| itg | failed: ImportError: none here |" in (tmp_path / "a/table.md").read_text()
    short = argparse.Namespace(device="cpu", tiny=True, limit=1)
    stopped = gpu_check.run("itg", short, [str(ROOT)], tmp_path)
    assert (stopped["ended"], stopped["holds"], stopped["rows"]) == ("stopped after 1 s", False, [])


def test_a_bound_that_is_broken_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, *_: Any) -> dict[str, Any]:
        found = Findings(tmp_path / "found.json")
        found.add("a figure", 1.5, 2.0)
        found.add("another", float("nan") if name == "sam" else 0.0, 2.0)
        found.add("not here", None, None, "why")
        holds = all(row["holds"] is not False for row in found.rows)
        return {"ended": "done", "seconds": 1.0, "holds": holds, "rows": found.rows}

    monkeypatch.setattr(gpu_check, "run", broken)
    words = ["gpu_check", "--device", "cpu", "--tiny", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--parts", "itg"])
    assert gpu_check.main() == 0
    monkeypatch.setattr(sys, "argv", [*words, "--parts", "itg", "sam"])
    assert gpu_check.main() == 1
    assert "| sam | done | 1.0 | **no** |" in (tmp_path / "table.md").read_text()


def test_wheels_are_installed_beside(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no wheel"):
        gpu_check.install(tmp_path, tmp_path / "to")
    with zipfile.ZipFile(tmp_path / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr("carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    gpu_check.install(tmp_path, tmp_path / "to")
    assert (tmp_path / "to/carried.py").is_file()


def test_without_a_gpu_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="no GPU that torch can use"):
        gpu_check.main()
    assert Sizes(layers=5).fitting("cpu") == 5


@pytest.mark.slow
def test_flex_attention_and_the_whole_command(tmp_path: Path) -> None:
    found = Findings(tmp_path / "found.json")
    correctness("cpu", dataclasses.replace(TINY, attentions=("flex",)), found)
    assert sum("flex" in row["what"] and row["figure"] is not None for row in found.rows) == 3
    done = command(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    parts = read_json(tmp_path / "results.json", {})["parts"]
    assert [part["ended"] for part in parts.values()] == ["done"] * len(gpu_check.PARTS)
