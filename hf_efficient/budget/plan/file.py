"""`efficiency_plan.json`: what was planned, and which files beside it were written with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hf_efficient.files import find, write_text
from hf_efficient.reading import AGAIN, naming, read_json, shown

NAME = "efficiency_plan.json"
FORMAT = "hf_efficient.plan.1"


def to_json(parts: dict[str, Any]) -> str:
    """Sorted, so that equal plans are equal files."""
    return json.dumps(parts, indent=2, sort_keys=True) + "\n"


def write(folder: Path, parts: dict[str, Any], files: list[str]) -> None:
    """Write the file, whole or not at all.

    Args:
        folder: where; it exists.
        parts: of the plan, as plain values.
        files: paths below the folder, with "/", that belong to the plan and are replaced with it.
    """
    write_text(folder / NAME, to_json({"format": FORMAT, "files": sorted({*files} - {NAME}), **parts}))


def read(folder_or_id: str | os.PathLike[str], **hub: Any) -> tuple[str, dict[str, Any]]:
    """Path of the file, and the parts in it, not yet checked.

    Raises:
        FileNotFoundError: the local folder has no such file.
        ValueError: it is not such a file, or one of another version.
    """
    missing = "the folder has no plan. Save one there: plan.save_pretrained(folder); or give one: load(..., plan=plan)."
    path = find(folder_or_id, NAME, missing, **hub)
    values = _record(Path(path))
    values.pop("files")
    return path, values


def files_of(folder: Path) -> list[str]:
    """The files in a folder that were written with its plan, the plan's own among them; none where there is no plan.

    Raises:
        FileExistsError: there is a file of this name, which is not one of ours.
    """
    if not os.path.lexists(folder / NAME):
        return []
    try:
        return [*_record(folder / NAME)["files"], NAME]
    except ValueError as error:
        raise FileExistsError(f"{error} It is not replaced: move it, or name another folder.") from error


def _record(path: Path) -> dict[str, Any]:
    values = read_json(path)
    with naming(path):
        if (found := values.pop("format", None)) != FORMAT:
            raise ValueError(
                f"format={shown(found)} is not known; expected {FORMAT!r}: the plan was saved by another version of "
                "hf_efficient. Upgrade hf_efficient, or save the plan again with this one."
            )
        files = values.setdefault("files", [])
        if not isinstance(files, list) or not all(isinstance(name, str) and _is_inside(name) for name in files):
            raise ValueError(f"files={shown(files)} is out of range; expected paths of files beside it. {AGAIN}")
    return values


def _is_inside(name: str) -> bool:
    path = Path(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
