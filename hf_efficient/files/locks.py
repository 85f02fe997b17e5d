"""One writer at a time for an output; the lock vanishes with the process that holds it."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .names import lock_name
from .whole import clear_errors

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def locked(output: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of an output (`.NAME.lock` beside it) for the block; the system frees it if the process ends.

    Threads of one process exclude each other as processes do. Of the processes of a launcher, one holds it for all.

    Raises:
        BlockingIOError: another process or thread is writing this output.
        FileExistsError: there is something else under the name of the lock; it is not touched.
        OSError: the folder cannot be written.
    """
    target = Path(output)
    path = lock_name(target)
    handle = _taken(path, target)
    try:
        os.ftruncate(handle, 0)
        with suppress(OSError):  # on a full disk nobody is told who holds it
            os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        with suppress(OSError):  # while it is held, so that nobody can have taken this very file
            path.unlink()
        os.close(handle)


def _taken(path: Path, target: Path) -> int:
    while True:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise _not_ours(path, target)
        with clear_errors(target, path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(handle)
            if _is_at(handle, path):  # else its holder has removed it in between
                _check_ours(handle, path, target)
                return handle
        except FileExistsError:
            os.close(handle)
            raise
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                holder = _holder(path)
                os.close(handle)
                raise BlockingIOError(
                    f"{str(target)!r} is being written by another process{holder}: wait for it, or name another output."
                ) from error
            warnings.warn(f"{str(path.parent)!r} supports no locks ({error}): let one process at a time write there.",
                          stacklevel=4)  # fmt: skip
            _check_ours(handle, path, target)
            return handle
        os.close(handle)


def _check_ours(handle: int, path: Path, target: Path) -> None:
    """Refuse a file that says something else than who held it."""
    if not re.fullmatch(rb"[\d\0]{0,16}", os.read(handle, 17)):  # zeros: a power cut
        raise _not_ours(path, target)
    os.lseek(handle, 0, os.SEEK_SET)


def _not_ours(path: Path, target: Path) -> FileExistsError:
    return FileExistsError(
        f"{str(path)!r} is not a lock of ours, and the lock of {str(target)!r} has that name: move it, or name another "
        "output."
    )


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(handle: int, path: Path) -> bool:
    try:
        there, mine = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError):
        return f" ({int(path.read_bytes()[:16])})"
    return ""
