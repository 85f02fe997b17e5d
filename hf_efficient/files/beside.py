"""Files that come into a folder all at once, beside what is there of others."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from .contents import walk
from .folders import exchanged, is_empty, set_modes_and_sync
from .locks import locked
from .names import aside_name, draft_name, is_abandoned_draft_of
from .outputs import check_output
from .whole import clear_errors, sync_folder

Ours = Callable[[Path], Collection[str]]


@contextmanager
def folder_updated(path: str | os.PathLike[str], ours: Ours) -> Iterator[Path]:
    """An empty folder to write in, whose files are in `path` when the block ends: all of them, or after an error none.

    What others have put into `path` stays: it is linked into the new folder, which then takes the place of the old one
    in one step (two where the system has no exchange of names; the next writer finishes what was broken off).

    Args:
        path: a folder, made if absent.
        ours: of a folder, the paths below it, with "/", that were written like this before: they are replaced, and
            what the block does not write again is gone.

    Raises:
        FileExistsError: the block wrote a file that is there already, is not ours, and has another content; or `path`
            is a file, a link or a mount point. Nothing was touched.
        BlockingIOError: another process is writing it.
        OSError: no space is left, or no permission.
    """
    target = check_output(os.path.abspath(path), "folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        _recover(target, ours)
        replaced = set(ours(target)) if target.is_dir() else set()
        draft = draft_name(target)
        try:
            with clear_errors(target, draft):
                draft.mkdir()
                yield draft
                set_modes_and_sync(draft)
                _carry_over(target, draft, replaced)
                _take_place(draft, target, replaced)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _carry_over(target: Path, draft: Path, replaced: Set[str]) -> None:
    """Link what others have in the old folder into the new one."""
    for path, name in walk(target):
        if name in replaced:
            continue
        new = draft / name
        if path.is_dir() and not path.is_symlink() and (new.is_dir() or not os.path.lexists(new)):
            new.mkdir(exist_ok=True)
        elif os.path.lexists(new):
            same = path.is_file() and new.is_file() and filecmp.cmp(path, new, shallow=False)
            if not same:
                raise FileExistsError(
                    f"{str(path)!r} is there already, and was not saved with what is to be replaced: move it, or name "
                    "another folder."
                )
        elif path.is_symlink():
            new.symlink_to(os.readlink(path))
        else:
            _link(path, new)


def _link(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # a file system without links; a full disk fails again
        shutil.copy2(path, new)


def _take_place(draft: Path, target: Path, replaced: Set[str]) -> None:
    if is_empty(target):
        target.rmdir()
    if not os.path.lexists(target):
        os.rename(draft, target)
        sync_folder(target.parent)
        return
    old = aside_name(target)
    if exchanged(draft, target):
        os.rename(draft, old)
    else:
        os.rename(target, old)
        os.rename(draft, target)
    sync_folder(target.parent)
    _clear(old, target, replaced)


def _clear(old: Path, target: Path, replaced: Set[str]) -> None:
    """Delete an old folder, but for what came into it at the last moment."""
    for path, name in list(walk(old)):
        new = target / name
        late = name not in replaced and not os.path.lexists(new) and os.path.lexists(path)
        if late and new.parent.is_dir():
            os.rename(path, new)
    shutil.rmtree(old)


def _recover(target: Path, ours: Ours) -> None:
    """Finish what a killed process began."""
    old = aside_name(target)
    if old.is_dir() and not old.is_symlink():
        if os.path.lexists(target):
            _clear(old, target, set(ours(old)))
        else:
            os.rename(old, target)
    with suppress(FileNotFoundError), os.scandir(target.parent) as entries:
        left = [e.path for e in entries if is_abandoned_draft_of(e.name, target) and e.is_dir(follow_symlinks=False)]
        for draft in left:
            shutil.rmtree(draft, ignore_errors=True)
