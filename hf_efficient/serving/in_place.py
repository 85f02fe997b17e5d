"""Handing the process over to another program."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def run_in_place(command: Sequence[str]) -> None:
    """Let another program go on as this process: signals and the exit code are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], list(command))
