"""Names of drafts and locks: they lie beside the output, and name the process that owns them."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

_DRAFT = re.compile(r"\.(?P<stem>.+)\.(?P<pid>\d{1,10})(-[0-9a-f]{8})?\.partial(?P<suffix>\..+)?", re.DOTALL)
_LONGEST = 180  # bytes: a name has at most 255, with all that is put around it


def draft_name(target: Path) -> Path:
    """A new, unique name beside `target`, with its suffix (libraries go by that) and the process in it."""
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= 32 else ""
    return target.with_name(f".{_short(target.stem)}.{os.getpid()}-{secrets.token_hex(4)}.partial{suffix}")


def lock_name(target: Path) -> Path:
    """The path of an output's lock."""
    return target.with_name(f".{_short(target.name)}.lock")


def aside_name(target: Path) -> Path:
    """The path of a folder while another takes its name."""
    return target.with_name(f".{_short(target.name)}.replaced")


def draft_of(name: str) -> str | None:
    """The name that a draft is for, given by `draft_name` now or in an earlier version; None: not a draft."""
    found = _DRAFT.fullmatch(name)
    return found and found["stem"] + (found["suffix"] or "")


def is_draft(name: str) -> bool:
    """Whether `draft_name` gave this name, now or in an earlier version."""
    return draft_of(name) is not None


def is_abandoned_draft_of(name: str, target: Path) -> bool:
    """Whether a name is that of a draft of `target` whose process has ended."""
    found = _DRAFT.fullmatch(name)
    return found is not None and found["stem"] == _short(target.stem) and not _lives(int(found["pid"]))


def _short(stem: str) -> str:
    raw = os.fsencode(stem)
    return stem if len(raw) <= _LONGEST else hashlib.sha256(raw).hexdigest()[:32]


def _lives(pid: int) -> bool:
    if os.name != "posix":  # there is no harmless way to ask: os.kill(pid, 0) would send Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
