"""What a command tells programs: `--json`."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_efficient.extras import extra
from hf_efficient.files import check_output, write_text

Content = dict[str, Any]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option to a command's parser; its module's `run` returns what is written."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file to write all of it to, for programs; - for standard output"
    )


def carried_out(run: Callable[[argparse.Namespace], Content | None], arguments: argparse.Namespace) -> None:
    """Run a command, and write what it returns where `--json` says.

    With `--json -` standard output holds the JSON alone: what is told to people goes to stderr.

    Raises:
        OSError: the file cannot be written; told before the command runs where that is known.
    """
    path: Path | None = getattr(arguments, "json", None)
    if path is None:
        run(arguments)
    elif str(path) == "-":
        with contextlib.redirect_stdout(sys.stderr):
            content = run(arguments)
        sys.stdout.write(as_json(content))
    else:
        check_output(path, "file")
        write_text(path, as_json(run(arguments)))


def check_plot(path: Path | None) -> None:
    """Refuse a plot that could not be drawn at the end.

    Args:
        path: of the picture, or None where none is asked for.

    Raises:
        ImportError: matplotlib is absent; the message says what to install.
        OSError, ValueError: see `check_output`.
    """
    if path is not None:
        check_output(path, "file")
        with extra("plots"):
            import_module("matplotlib")


def as_json(content: Any) -> str:
    """Plain values as JSON, with null for what is no finite number, and paths as texts."""
    return json.dumps(finite(content), indent=1, default=os.fspath, allow_nan=False) + "\n"


def finite(content: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not know."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
