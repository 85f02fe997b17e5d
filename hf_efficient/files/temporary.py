"""Temporary files: a server's one folder for uploads, work and results, and how it is emptied."""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

_AT_WORK: set[str] = set()  # folders of work that goes on


def server_folder(parent: str | os.PathLike[str], prefix: str) -> Path:
    """A new folder in `parent` (made if absent), which is removed when this process ends."""
    os.makedirs(parent, exist_ok=True)
    folder, process = tempfile.mkdtemp(prefix=prefix, dir=parent), os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not a child of ours, which ends before us
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` for the files of one request, removed with the block; `sweep` leaves it alone until then."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="work_", ignore_cleanup_errors=True) as folder:
        _AT_WORK.add(folder)
        try:
            yield Path(folder)
        finally:
            _AT_WORK.discard(folder)


def sweep(folder: Path, seconds: float, stays: Set[str] = frozenset()) -> None:
    """Delete files that have not changed for `seconds`, and folders that have been empty as long.

    Args:
        folder: one of `server_folder`. Links are not followed.
        seconds: since the last change.
        stays: paths of files that are left.
    """
    before = time.time() - seconds
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if os.path.join(place, name) not in _AT_WORK]
        for name in files:
            path = os.path.join(place, name)
            if path not in stays:
                _delete_old(path, before, os.unlink)
    for place, folders, _ in os.walk(folder, topdown=False):
        for name in folders:
            _delete_old(os.path.join(place, name), before, os.rmdir)


def _delete_old(path: str, before: float, how: Callable[[str], None]) -> None:
    try:
        found = os.lstat(path)
        if max(found.st_ctime, found.st_mtime) < before and (how is os.unlink or stat.S_ISDIR(found.st_mode)):
            how(path)
    except OSError:  # gone meanwhile, or not empty
        pass
