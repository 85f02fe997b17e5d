"""Processes that are killed on their way."""

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

CHANGES = ("open", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod", "fsync", "ftruncate")
Functions = tuple[tuple[Any, str], ...]


def killed_before(step: int, action: Callable[[], object], also: Functions = ()) -> bool:
    """Do something in a forked process, which is killed before its n-th change of files. Return whether it was.

    Args:
        step: changes that it may still make.
        action: what it does.
        also: (module, name) of functions that count as changes, beside those of `os`.
    """
    return _forked(step, action, also)[0]


def changes(action: Callable[[], object], also: Functions = ()) -> int:
    """How many changes an action makes, in a forked process."""
    return _forked(1 << 60, action, also)[1]


def _forked(step: int, action: Callable[[], object], also: Functions) -> tuple[bool, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            made = 0

            def dying(call: Any) -> Any:
                def replacement(*args: Any, **options: Any) -> Any:
                    nonlocal made
                    made += 1
                    if made > step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **options)

                return replacement

            for module, name in (*((os, name) for name in CHANGES), *also):
                setattr(module, name, dying(getattr(module, name)))
            action()
            os.write(writing, str(made).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(reading, "rb") as pipe:
        made = int(pipe.read() or 0)
    assert code in (0, -signal.SIGKILL), "it failed by itself"
    return code != 0, made
