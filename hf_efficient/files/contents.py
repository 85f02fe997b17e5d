"""What this package's folders contain, which tells them from other folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .names import draft_of

LARGEST_RECORD = 1 << 20
MODE = "mode"  # of a draft that is only made to see what the umask gives


@dataclass(frozen=True)
class Contents:
    """What a folder of one kind holds, all of it written by us.

    Args:
        kind: the word for it, "bundle".
        record: its JSON file, which identifies it.
        known: whether a record's content is one of ours.
        names: regular expressions of the paths in it, folders included, with "/".
    """

    kind: str
    record: str
    known: Callable[[dict[str, Any]], bool]
    names: tuple[str, ...]

    def read(self, folder: Path) -> dict[str, Any] | None:
        """The record of a folder; None where there is none that is ours."""
        path = folder / self.record
        try:
            if folder.is_symlink() or path.is_symlink() or path.stat().st_size > LARGEST_RECORD:
                return None
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return record if isinstance(record, dict) and self.known(record) else None

    def holds(self, name: str) -> bool:
        """Whether a path in the folder is one of ours, a draft of one, or in such a draft."""
        parts = name.split("/")
        for n, part in enumerate(parts):
            whole = draft_of(part)
            if whole is not None:
                return whole == MODE or self._names("/".join([*parts[:n], whole]))
        return self._names(name)

    def _names(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.names)


def foreign(folder: Path, contents: Contents) -> str | None:
    """The first path in a folder that we did not write, links included; None where there is none."""
    for path, name in walk(folder):
        if path.is_symlink() or not contents.holds(name):
            return name
    return None


def walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Everything below a folder, in order of names, children after their folder; links are not followed."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(folders + files):
            path = Path(root, name)
            yield path, path.relative_to(folder).as_posix()
