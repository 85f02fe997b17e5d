"""The examples of sparse training run, small, and say what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "sparse_from_scratch": (["--images", "640", "--epochs", "1"], "the same weights: True"),
    "sparse_adapter": (["--texts", "64", "--steps", "10"], "merged: the same answers: True"),
    "sparse_deployment": (["--steps", "1"], "zeros before and after fine-tuning"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_example_runs(name: str, repository: Path, tmp_path: Path) -> None:
    arguments, promise = CASES[name]
    command = [sys.executable, str(repository / "examples" / f"{name}.py"), *arguments, "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    if "could not be fetched" in done.stderr or "dataset-fashion-mnist" in done.stderr:
        pytest.skip(f"{name} needs data that is not here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert promise in done.stdout
    assert any(tmp_path.iterdir())
