"""Handing the process over to another program."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence


def run_in_place(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Let another program go on as this process: signals and the exit code are its own.

    Args:
        command: the program, and its arguments.
        environment: variables for it; those that are set already stay.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), {**(environment or {}), **os.environ})
