"""Result files: written whole, resumed after an interruption, with a record of the runs that made them."""

import argparse
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hf_efficient.files import write_text

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "av")


def read_json(path: Path, default: Any) -> Any:
    """What a JSON file holds, or `default` where there is none."""
    return json.loads(path.read_text()) if path.is_file() else default


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_table(path: Path, text: str) -> None:
    """Write a table, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.rstrip("\n") + "\n")
    print(text)


def record_run(output: Path) -> None:
    """Append to `output`/log.json how results are being made: command, commit, date, machine, threads, versions.

    Neither host names nor the folders of the machine are written: of an option that names a path, the last part stays.
    """
    spec = sys.modules["__main__"].__spec__
    log = output / "log.json"
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    entry = {
        "command": shlex.join(["python", "-m", spec.name if spec else "", *words]),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    write_json(log, [*read_json(log, []), entry])


def _commit() -> str | None:
    """The commit that is checked out, marked where files differ from it; None outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def stored_runs(
    output: Path, work: Callable[[Any], Iterator[Any]], do: Callable[[Any], Mapping[str, float]], digits: int
) -> Any:
    """Results by key of all runs: what `output`/runs.json holds, and the others, done now and stored one by one.

    Args:
        output: folder, where log.json says how they are made.
        work: the runs, each with a `key`, given the results so far: a later run may be chosen by them.
        do: a run's figures.
        digits: of these that are stored.
    """
    record_run(output)
    path = output / "runs.json"
    runs = read_json(path, {})
    for run in work(runs):
        if run.key not in runs:
            runs[run.key] = {name: round(value, digits) for name, value in do(run).items()}
            write_json(path, runs)
            print(run.key, runs[run.key], flush=True)
    return runs


class Rows:
    """Rows by key in a JSON file that is written anew after each one: a run can be stopped, and goes on later.

    Args:
        path: the file.
        arguments: options of the command line.
        names: those of them that all rows of a file share.

    Raises:
        SystemExit: the file holds rows of other settings.
    """

    def __init__(self, path: Path, arguments: argparse.Namespace, names: tuple[str, ...]) -> None:
        self.path = path
        self.settings = {name: getattr(arguments, name) for name in names}
        known = read_json(path, {"settings": self.settings, "rows": {}})
        if known["settings"] != self.settings:
            other = {n: v for n, v in known["settings"].items() if v != self.settings.get(n)}
            raise SystemExit(f"{path} holds rows of other settings, {other}: name another folder by --output.")
        self.rows: dict[str, dict[str, Any]] = known["rows"]

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Store a row."""
        self.rows[key] = dict(row)
        write_json(self.path, {"settings": self.settings, "rows": self.rows})
