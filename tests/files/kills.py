"""Processes that are killed on their way."""

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

CHANGES = ("open", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod", "fsync", "ftruncate")


def killed_before(step: int, action: Callable[[], object], also: tuple[tuple[Any, str], ...] = ()) -> bool:
    """Do something in a forked process, which is killed before its so-manieth change of files; whether it was.

    Args:
        step: changes that it may still make.
        action: what it does.
        also: (module, name) of functions that count as changes, beside those of `os`.
    """
    pid = os.fork()
    if pid == 0:
        try:
            left = step

            def dying(call: Any) -> Any:
                def replacement(*args: Any, **options: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **options)

                return replacement

            for module, name in (*((os, name) for name in CHANGES), *also):
                setattr(module, name, dying(getattr(module, name)))
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), "it failed by itself"
    return code != 0
