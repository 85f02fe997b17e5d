"""This package's folders: recognized, replaced as a whole, deleted without touching other files."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from .contents import MODE, Contents, foreign, walk
from .locks import locked
from .names import aside_name, draft_name, is_abandoned_draft_of, is_draft
from .outputs import check_output
from .whole import clear_errors, set_mode_and_sync, sync_folder

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_ours(folder: Path, contents: Contents) -> dict[str, Any]:
    """The record of a folder that we may delete or replace.

    Raises:
        FileExistsError: it has no record of ours, or holds something else as well; nothing was touched.
    """
    record = contents.read(folder)
    if record is None:
        raise FileExistsError(
            f"{str(folder)!r} is not a {contents.kind} ({contents.record} is missing or not ours), so it is neither "
            "replaced nor deleted: name another folder."
        )
    other = foreign(folder, contents)
    if other is not None:
        raise FileExistsError(
            f"{str(folder)!r} holds {other!r}, which is not part of a {contents.kind}, so it is neither replaced nor "
            "deleted: move that file, or name another folder."
        )
    return record


def delete_folder(folder: Path, contents: Contents) -> None:
    """Delete what is ours in a folder; then, where nothing else is in it, its record and the folder itself.

    A folder without a record of ours is not touched, unless it is empty.
    """
    if contents.read(folder) is not None:
        ours = [(path, name) for path, name in walk(folder) if contents.holds(name) and not path.is_symlink()]
        for path, name in reversed(ours):
            if path.is_dir():
                with suppress(OSError):  # something foreign is left in it
                    path.rmdir()
            elif name != contents.record:
                path.unlink(missing_ok=True)
        if os.listdir(folder) == [contents.record]:
            (folder / contents.record).unlink()
    with suppress(OSError):
        folder.rmdir()


def replace_folder(draft: Path, target: Path, contents: Contents | None = None) -> Path | None:
    """Give a finished folder its name; what had it before is left under the name of the draft, or beside it.

    Where the system can (Linux), the two are exchanged in one step. Elsewhere the old one steps aside first; killed
    between the steps, `recover` brings it back.

    Args:
        draft: the finished folder, on the file system of `target`.
        target: the name; nothing, an empty folder, or a folder of ours.
        contents: what `target` may hold to be replaced; None: nothing.

    Returns:
        Where the old folder is now, to be deleted; None where there was none.

    Raises:
        FileExistsError: `target` is not ours.
    """
    if is_empty(target):
        target.rmdir()
    if not os.path.lexists(target):
        os.rename(draft, target)
        sync_folder(target.parent)
        return None
    _check_replaceable(target, contents)
    if exchanged(draft, target):
        old = draft
    else:
        old = aside_name(target)
        os.rename(target, old)
        os.rename(draft, target)
    sync_folder(target.parent)
    return old


def _check_replaceable(target: Path, contents: Contents | None) -> None:
    if contents is None:
        raise FileExistsError(f"{str(target)!r} is in use: name a new or an empty folder.")
    check_ours(target, contents)


def recover(target: Path, contents: Contents | None = None) -> None:
    """Finish what a killed process began with a folder: bring an old one back, delete its drafts.

    Call it under the lock of `target`.
    """
    aside = aside_name(target)
    if contents is not None and aside.is_dir():
        if os.path.lexists(target):
            delete_folder(aside, contents)
        elif contents.read(aside) is not None:
            os.rename(aside, target)
    _remove_abandoned(target, contents)


@contextmanager
def folder_written_whole(
    path: str | os.PathLike[str], contents: Contents | None = None, lock: bool = True
) -> Iterator[Path]:
    """An empty folder to write in, which becomes `path` when the block ends; after an exception nothing is left of it.

    Files get the modes that the umask gives. The lock of `path` is held.

    Args:
        path: nothing, an empty folder, or a folder of ours.
        contents: what `path` may hold to be replaced; None: nothing.
        lock: False where the lock of a folder around it is held.

    Raises:
        FileExistsError: there is something else; nothing was touched.
        OSError, ValueError: see `check_output`.
        BlockingIOError: another process is writing it.
        OSError: no space is left.
    """
    target = check_output(os.path.abspath(path), "folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target) if lock else nullcontext():
        recover(target, contents)
        if os.path.lexists(target) and not is_empty(target):
            _check_replaceable(target, contents)
        draft = draft_name(target)
        old = draft
        try:
            with clear_errors(target, draft):
                draft.mkdir()
                yield draft
                set_modes_and_sync(draft)
                old = replace_folder(draft, target, contents) or draft
        finally:
            if old != draft and contents is not None:
                delete_folder(old, contents)
            _remove_draft(draft, contents)


@contextmanager
def scratch_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside `path` for files that a library writes and we move on; it is removed afterwards."""
    target = Path(path)
    _remove_abandoned(target, None)
    draft = draft_name(target)
    try:
        with clear_errors(target):
            draft.mkdir()
            yield draft
    finally:
        _remove_draft(draft, None)


def _remove_abandoned(target: Path, contents: Contents | None) -> None:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(target.parent) as entries:
        left = [e.name for e in entries if is_abandoned_draft_of(e.name, target) and e.is_dir(follow_symlinks=False)]
        for name in left:
            _remove_draft(target.with_name(name), contents)


def _remove_draft(draft: Path, contents: Contents | None) -> None:
    """Delete a draft, or the old folder that was exchanged for it, of which only what is ours."""
    if contents is not None and contents.read(draft) is not None:
        delete_folder(draft, contents)
    else:
        shutil.rmtree(draft, ignore_errors=True)


def set_modes_and_sync(folder: Path) -> None:
    """Give all files below a folder the modes of the umask, and flush them to the disk."""
    mode = _new_file_mode(folder)
    for path, _ in list(walk(folder)):
        if path.is_file() and not path.is_symlink():
            set_mode_and_sync(path, mode)
    sync_folder(folder)


def _new_file_mode(folder: Path) -> int:
    """What the umask gives; asking for the umask itself would change it for other threads."""
    probe = draft_name(folder / MODE)
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def is_vacant(folder: Path, contents: Contents) -> bool:
    """Whether there is nothing in a folder, or only drafts of ours that killed processes left."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    return all(is_draft(name) and contents.holds(name) for name in os.listdir(folder))


def remove_drafts(folder: Path, contents: Contents) -> None:
    """Delete every draft of ours below a folder. Hold its lock, so that no process is writing them."""
    for path, name in list(walk(folder)):
        if is_draft(path.name) and contents.holds(name) and not path.is_symlink():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@functools.cache
def _renameat2() -> Any:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None


def exchanged(one: Path, other: Path) -> bool:
    """Whether the system has exchanged two names in one step; nothing has changed where it cannot."""
    call = _renameat2()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # an old kernel, or a file system without it
        return False
    raise OSError(code, os.strerror(code), str(other))
