"""Processes that are killed on their way."""

import subprocess
import sys

CHILD = """
import os, sys
left = int(sys.argv.pop(1))
def dying(call):
    def replacement(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return call(*args, **options)
    return replacement
def armed():
    "From here on, the process dies before a step that changes files."
    for name in ("open", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod", "fsync", "ftruncate"):
        setattr(os, name, dying(getattr(os, name)))
"""


def killed_before(step: int, code: str, *arguments: object) -> bool:
    """Run Python code, which calls `armed()`, and kill it before its so-manieth change of files; whether it was."""
    command = [sys.executable, "-c", CHILD + code, str(step), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode in (0, -9), run.stderr
    return run.returncode == -9
