"""The work folder of a fit: what is done so far, how it is recognized, and how it becomes the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_efficient.files import (
    Contents,
    check_ours,
    check_output,
    clear_errors,
    delete_folder,
    is_vacant,
    recover,
    remove_drafts,
    rename,
    replace_folder,
    set_modes_and_sync,
    write_text,
)
from hf_efficient.reading import shown
from hf_efficient.video.files.bundle import BUNDLE
from hf_efficient.video.files.manifest import MANIFEST_NAME, sha256
from hf_efficient.video.files.reader import StrPath

NETWORK = r"(general|scales|(expert|scene)-\d+)"
NAMES = (r"(settings|deleting)\.json", r"errors\.npy", rf"{NETWORK}(/(lr|hr)\.npy|\.safetensors)?", "bundle",
         *(f"bundle/{name}" for name in BUNDLE.names))  # fmt: skip


def _known(record: dict[str, Any]) -> bool:
    return {"method", "scorer", "source", "steps"} <= record.keys()


# The record is renamed before the rest is deleted, so that a folder half deleted is not taken for unfinished work.
WORK = Contents("work folder", "settings.json", _known, NAMES)
DELETED = Contents("work folder", "deleting.json", _known, NAMES)


class WorkFolder:
    """`OUTPUT.partial`, beside the bundle that is being made.

    Attributes:
        draft: the folder that becomes the bundle.
    """

    def __init__(self, output: StrPath) -> None:
        self.output = Path(output)
        self.folder = self.output.parent / f"{self.output.name}.partial"  # for "." too, which `check` refuses
        self.draft = self.folder / "bundle"

    def check(self, source: StrPath, overwrite: bool) -> None:
        """Refuse, before any work, an output that cannot become a bundle or would overwrite files of the user.

        Raises:
            OSError, ValueError: see `check_output` and `check_ours`; or there is a bundle and `overwrite` is False.
        """
        check_output(self.output, "folder", [source])
        check_output(self.folder, "folder", [source])
        if self.folder.exists() and not is_vacant(self.folder, WORK):
            check_ours(self.folder, DELETED if DELETED.read(self.folder) else WORK)
        if not self.output.exists() or self.is_finished():
            return
        if any(self.output.iterdir()):
            check_ours(self.output, BUNDLE)  # before the advice to overwrite, which holds for bundles alone
        if not overwrite:
            raise FileExistsError(
                f"{str(self.output)!r} exists: choose another folder, or overwrite it (overwrite=True)."
            )

    def is_finished(self) -> bool:
        """Whether the bundle has its final name, and only the work is left to delete, after a kill."""
        record, manifest = WORK.read(self.folder) or DELETED.read(self.folder) or {}, self.output / MANIFEST_NAME
        return "made" in record and manifest.is_file() and sha256(manifest) == record["made"]

    def begun_with(self, identity: dict[str, Any]) -> bool:
        """Whether the work in the folder, or the rest of it, belongs to these settings and this source."""
        record = WORK.read(self.folder) or DELETED.read(self.folder) or {}
        return all(record.get(name) == value for name, value in identity.items())

    def begin(self, source: StrPath, identity: dict[str, Any], overwrite: bool) -> None:
        """Make the folder. If it exists, remove files that a killed process was writing, or work of other settings.

        Raises:
            FileExistsError: there is unfinished work with other settings and `overwrite` is False.
            OSError, ValueError: see `check`.
        """
        self.recover()
        self.check(source, overwrite)
        known = WORK.read(self.folder) or {}
        different = sorted(name for name in identity if known and known.get(name) != identity[name])
        if different and not overwrite:
            changes = ", ".join(_change(name, known.get(name), identity[name]) for name in different)
            raise FileExistsError(
                f"{str(self.folder)!r} holds unfinished work with other settings ({changes}): call with those "
                "to go on, or with overwrite=True to start again."
            )
        if different:
            self.delete()
        with clear_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_drafts(self.folder, WORK)
            write_text(self.folder / WORK.record, json.dumps(identity))
            self.draft.mkdir(exist_ok=True)

    def publish(self, identity: dict[str, Any]) -> None:
        """Move the finished draft to the bundle's name, in place of an old bundle, and delete the work."""
        set_modes_and_sync(self.draft)
        made = sha256(self.draft / MANIFEST_NAME)
        write_text(self.folder / WORK.record, json.dumps({**identity, "made": made}))
        old = replace_folder(self.draft, self.output, BUNDLE)
        if old is not None:
            delete_folder(old, BUNDLE)
        self.delete()

    def recover(self) -> None:
        """Finish what a killed process began: restore a bundle that was moved aside, delete the rest of old work."""
        recover(self.output, BUNDLE)
        if DELETED.read(self.folder) or self.is_finished():
            self.delete()

    def delete(self) -> None:
        """Delete the work; files in it that are not ours stay."""
        if WORK.read(self.folder):
            rename(self.folder / WORK.record, self.folder / DELETED.record)
        delete_folder(self.folder, DELETED)


def _change(name: str, then: object, now: object) -> str:
    """A difference between the settings of two fits, in words; files are compared by checksums, which say nothing."""
    if name in (files := {"source": "another source file", "scorer": "another scorer"}):
        return files[name]
    return f"{name}={shown(then)} then, {name}={shown(now)} now"
