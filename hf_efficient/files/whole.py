"""One file, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .names import draft_name, is_abandoned_draft_of

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
# what libraries say of a full disk that do not pass its number on: safetensors, torch.save, numpy
_FULL_WORDS = re.compile(
    r"No space left on device|File too large|Disk quota exceeded|os error (28|27|122)\b"
    r"|enforce fail at inline_container.*unexpected pos|PytorchStreamWriter failed|basic_ios::clear: iostream error"
    r"|\d+ requested and \d+ written"
)


class DiskFullError(OSError):
    """A full disk, reported in a line that names the file; `errno` is the system's."""


@contextmanager
def written_whole(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """A draft to write to, which becomes `path` when the block ends; after an exception nothing is left of it.

    The draft is there, empty, stands beside `path` (a rename never crosses file systems) and ends as `path` does
    (libraries go by that). Drafts of `path` that killed processes left are removed. The mode is what the umask gives,
    whatever the library that writes thinks. Where `path` is a link, the link is replaced, not what it points to.

    Args:
        path: the file.
        durable: wait until the disk has it, so that it survives a power cut too; not for what is written again soon.

    Raises:
        OSError: no space is left (the message names `path` and what to do), or `path` cannot be written.
    """
    target = Path(path)
    draft = draft_name(target)
    try:
        with clear_errors(target, draft):
            remove_leftovers(target)
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            mode = draft.stat().st_mode & 0o777
            yield draft
            set_mode_and_sync(draft, mode, durable)
            os.replace(draft, target)
            if durable:
                sync_folder(target.parent)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


def write_text(path: str | os.PathLike[str], text: str, durable: bool = True) -> None:
    """UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"), durable)


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview, durable: bool = True) -> None:
    """Whole or not at all."""
    with written_whole(path, durable) as draft:
        draft.write_bytes(content)


def copy_file(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copy the content of a file, whole or not at all."""
    with written_whole(path) as draft:
        shutil.copyfile(source, draft)


def remove_file(path: Path) -> None:
    """Delete a file of ours, if it is there."""
    path.unlink(missing_ok=True)


def rename(path: Path, new: Path) -> None:
    """Give a file of ours another name, in place of a file that has it; needs no space."""
    os.replace(path, new)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete the drafts of a file that ended processes left."""
    target = Path(path)
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(target.parent) as entries:
        found = [e.name for e in entries if is_abandoned_draft_of(e.name, target) and e.is_file(follow_symlinks=False)]
        for name in found:
            target.with_name(name).unlink(missing_ok=True)


@contextmanager
def clear_errors(target: str | os.PathLike[str], draft: Path | None = None) -> Iterator[None]:
    """Turn libraries' errors about a full disk into one line; errors of a draft name the file it is a draft of.

    Raises:
        DiskFullError: no space is left.
    """
    try:
        yield
    except Exception as error:
        code = full_disk(error)
        told = isinstance(error, DiskFullError) and (draft is None or str(draft) not in str(error))
        if code and not told:
            raise DiskFullError(code, _advice(code, Path(target))) from error
        if isinstance(error, OSError) and draft is not None and error.filename in (str(draft), draft):
            error.filename = str(target)
        raise


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it that are missing.

    Raises:
        DiskFullError: no space is left.
        OSError: it cannot be made: a file is in its place or above it, there is no permission, or a file system of the
            kernel's own takes none, which calls that "no such file".
    """
    with clear_errors(folder):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            if full_disk(error):
                raise
            said = f"The folder cannot be made ({error.strerror}): choose another folder"
            raise type(error)(error.errno, said, os.fspath(folder)) from error


def full_disk(error: BaseException) -> int:
    """The system's number of an error that a full disk caused, or 0."""
    link: BaseException | None = error
    for _ in range(8):  # causes may form a circle
        if link is None:
            break
        number = getattr(link, "errno", None)
        if number in _FULL:
            return int(number)
        if isinstance(link, Exception) and _FULL_WORDS.search(str(link)):
            return errno.EFBIG if "File too large" in str(link) else errno.ENOSPC
        link = link.__cause__ or link.__context__
    return 0


def _advice(code: int, target: Path) -> str:
    said = f"{str(target)!r} cannot be written"
    if code == errno.EFBIG:
        return f"{said}: it would be larger than the file system allows. Choose another folder."
    free = ""
    with suppress(OSError):
        free = f" ({shutil.disk_usage(target.parent).free:,} bytes are free there)"
    return f"{said}: no space is left{free}. Make room, or choose another folder; then call again."


def set_mode_and_sync(draft: Path, mode: int, durable: bool = True) -> None:
    """Give a finished draft its mode, and flush it to the disk."""
    if draft.stat().st_mode & 0o777 != mode:
        draft.chmod(mode)
    if durable:
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class NpyWriter:
    """A .npy file of a known shape, filled from its start; for folders that are drafts themselves.

    A memory map would be allocated page by page as it is filled: on a full disk the process is killed by a signal.

    Args:
        path: the file.
        dtype: of the array.
        shape: of the array; rows are added along the first axis.
    """

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
        import numpy as np

        self.path, self.dtype, self.shape, self.rows = path, np.dtype(dtype), shape, 0
        self.file = open(path, "wb")  # noqa: SIM115  closed by `close`
        head = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        with clear_errors(path):
            np.lib.format.write_array_header_1_0(self.file, head)

    def add(self, rows: Any) -> None:
        """Append an array (n, *shape[1:]) of the dtype.

        Raises:
            ValueError: the rows do not fit the announced shape or dtype.
            OSError: no space is left.
        """
        if rows.shape[1:] != self.shape[1:] or rows.dtype != self.dtype or self.rows + len(rows) > self.shape[0]:
            raise ValueError(
                f"{self.path} takes {self.shape} {self.dtype}; {rows.shape} {rows.dtype} do not fit behind "
                f"{self.rows} rows."
            )
        with clear_errors(self.path):
            self.file.write(rows.tobytes())
        self.rows += len(rows)

    def close(self) -> None:
        """End the file; it is whole if as many rows were added as the shape says."""
        with clear_errors(self.path):
            self.file.close()

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
