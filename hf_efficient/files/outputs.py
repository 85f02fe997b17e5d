"""Outputs are checked before any work is done for them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

AnyPath = str | os.PathLike[str]


def check_output(path: AnyPath, kind: Literal["file", "folder"], sources: Iterable[AnyPath] = ()) -> Path:
    """Refuse an output that could not be written, or that would overwrite a file of the user.

    Args:
        path: the output.
        kind: "file", whose folder must be there, or "folder", which is replaced or made as a whole, parents included.
        sources: files or folders that are read for it.

    Returns:
        `path` as a Path.

    Raises:
        ValueError: it has no name, or is, holds or lies in what is read for it.
        FileExistsError: there is something of another kind: a folder, a file, a link, a mount point, a device.
        FileNotFoundError, NotADirectoryError, PermissionError: its folder is missing, no folder or not writable.
    """
    target, said = Path(path), repr(str(path))
    if target.name in ("", "..") or "\0" in str(target):
        raise ValueError(f"{said} cannot be an output: give the {kind} a name.")
    _check_kind(target, kind, said)
    _check_parent(target, kind, said)
    for source in sources:
        _check_source(target, Path(source), said)
    return target


def check_report(folder: AnyPath, record: str, names: Iterable[str], key: str, sources: Iterable[AnyPath] = ()) -> Path:
    """Refuse to write results into a folder where they would replace something that is not an earlier result.

    Args:
        folder: made if absent; may hold other things.
        record: JSON file of the results, written first.
        names: regular expressions of the other files.
        key: a field that every record of ours has.
        sources: files or folders that are read for it.

    Raises:
        FileExistsError: it is not a folder, or has a file of such a name, and no record of ours.
        OSError, ValueError: see `check_output`.
    """
    target = Path(folder)
    if not target.is_dir():
        return check_output(target, "folder", sources)
    for source in sources:
        if target.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"{str(folder)!r} lies inside {str(source)!r}, which is an input: name another folder.")
    if not os.access(target, os.W_OK | os.X_OK):
        raise PermissionError(f"There is no permission to write in {str(folder)!r}.")
    patterns = [re.escape(record), *names]
    there = sorted(n for n in os.listdir(target) if any(re.fullmatch(pattern, n) for pattern in patterns))
    if there and not _has_key(target / record, key):
        raise FileExistsError(
            f"{str(target / there[0])!r} was not written by this command, and is not replaced: name another folder."
        )
    return target


def _has_key(path: Path, key: str) -> bool:
    try:
        return not path.is_symlink() and key in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _check_kind(target: Path, kind: str, said: str) -> None:
    try:
        mode = target.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(mode):
        raise FileExistsError(
            f"{said} is a link to {os.readlink(target)!r}: name what it points to, or another {kind}."
        )
    if kind == "folder" and not stat.S_ISDIR(mode):
        raise FileExistsError(f"{said} is a file, a folder is to be written there: name another one.")
    if kind == "file" and stat.S_ISDIR(mode):
        raise FileExistsError(f"{said} is a folder, a file is to be written there: name a file in it.")
    if kind == "file" and not stat.S_ISREG(mode):
        raise FileExistsError(f"{said} is a device or pipe, which cannot be replaced as a whole: name a file.")
    if kind == "folder" and os.path.ismount(target):
        raise FileExistsError(f"{said} is a mount point, which cannot be replaced as a whole: name a folder in it.")


def _check_parent(target: Path, kind: str, said: str) -> None:
    folder = target.absolute().parent
    while kind == "folder" and not os.path.lexists(folder):
        folder = folder.parent
    if not folder.exists():
        raise FileNotFoundError(f"{said} cannot be written: there is no folder {str(folder)!r}; make it first.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{said} cannot be written: {str(folder)!r} is not a folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{said} cannot be written: there is no permission to write in {str(folder)!r}.")


def _check_source(target: Path, source: Path, said: str) -> None:
    if not source.exists():
        return  # whoever reads it says so
    output, read = target.resolve(), source.resolve()
    if output == read or (target.exists() and os.path.samefile(target, source)):
        raise ValueError(f"{said} is the input and cannot be the output as well: name another output.")
    if read.is_relative_to(output):
        raise ValueError(f"{str(source)!r} is an input and lies inside the output {said}: name another output.")
    if output.is_relative_to(read):
        raise ValueError(f"{said} lies inside {str(source)!r}, which is an input: name an output somewhere else.")


def require_space(folder: AnyPath, needed: int, what: str) -> None:
    """Refuse to begin with what does not fit.

    Args:
        folder: where it is to be written; it exists.
        needed: bytes.
        what: what is to be written, for the message.

    Raises:
        OSError: ENOSPC.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{what} need {needed:,} bytes in {str(folder)!r}, where {free:,} are free: make room, or name another "
            "place; then call again",
        )


def ffmpeg_url(path: AnyPath) -> str:
    """How to hand a file to FFmpeg, so that no name is read as an address (`http:x.mp4`), option or pipe (`-`)."""
    return "file:" + os.path.abspath(path)
