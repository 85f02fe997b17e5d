"""Checkpoints of a transformers Trainer: complete, or not accepted as checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .names import aside_name
from .whole import clear_errors

RECORD = "trainer_state.json"  # what the Trainer writes last
UNFINISHED = "checkpoint-is-incomplete.txt"  # its own sign, when it saves at a signal
_PREFIX = "checkpoint-"


class WholeCheckpoints:
    """A mix-in before a Trainer, which then never resumes from an unfinished checkpoint.

    When a checkpoint is written again, the old one stays under another name until the new one is finished.
    """

    args: Any
    accelerator: Any
    state: Any

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own; `resume_from_checkpoint=True` is the last checkpoint that is whole.

        Raises:
            ValueError: the checkpoint is not whole, or there is none that is.
        """
        stock: Any = super()
        if not resume_from_checkpoint:
            return stock.train(resume_from_checkpoint, *args, **kwargs)
        asked = Path(self.args.output_dir if resume_from_checkpoint is True else resume_from_checkpoint)
        if self.args.should_save:
            recover_checkpoints(asked if resume_from_checkpoint is True else asked.absolute().parent)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole(asked)
        elif asked.is_dir():
            check_whole(asked)
        return stock.train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        stock: Any = super()
        folder = Path(stock._get_output_dir(trial=trial)) / f"{_PREFIX}{self.state.global_step}"
        with _replaced(folder, self.args.should_save, self.accelerator.wait_for_everyone), clear_errors(folder):
            stock._save_checkpoint(model, trial)


@contextmanager
def _replaced(folder: Path, first: bool, wait: Any) -> Iterator[None]:
    """Keep the old checkpoint of a name beside it while a new one is written; `first` of the processes does it."""
    aside = aside_name(folder)
    if first:
        recover_checkpoints(folder.parent)
        if is_whole(folder):
            os.rename(folder, aside)
    wait()
    yield
    wait()
    if first and aside.is_dir():
        _merge(aside, folder)


def _merge(aside: Path, folder: Path) -> None:
    """Delete of an old checkpoint what the new one has; what only the old one had was not the Trainer's, and stays."""
    for root, _, names in os.walk(aside, topdown=False):
        for name in names:
            old = Path(root, name)
            new = folder / old.relative_to(aside)
            if old.name == RECORD or new.exists():
                continue
            new.parent.mkdir(parents=True, exist_ok=True)
            os.rename(old, new)
    shutil.rmtree(aside)


def recover_checkpoints(folder: Path) -> None:
    """Finish what a killed process began with a folder's checkpoints: a complete new one stays, else the old."""
    for aside in sorted(folder.glob(f".{_PREFIX}*.replaced")):
        target = folder / aside.name.removeprefix(".").removesuffix(".replaced")
        if is_whole(target):
            _merge(aside, target)
        elif is_whole(aside):
            shutil.rmtree(target, ignore_errors=True)  # begun after the old one had stepped aside
            os.rename(aside, target)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        state = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(state, dict) and not (folder / UNFINISHED).exists()


def has_whole(folder: str | os.PathLike[str]) -> bool:
    """Whether there is a whole checkpoint among those of a Trainer's folder, also one that had stepped aside."""
    return any(is_whole(path) for pattern in ("", ".") for path in Path(folder).glob(f"{pattern}{_PREFIX}*"))


def check_whole(folder: Path) -> None:
    """Refuse a checkpoint that was not written to its end.

    Raises:
        ValueError: it was not.
    """
    if not is_whole(folder):
        raise ValueError(
            f"{str(folder)!r} is not a whole checkpoint: its {RECORD}, which is written last, is missing or damaged. "
            "Resume from an earlier one, or with resume_from_checkpoint=True from the last that is whole."
        )


def last_whole(folder: Path) -> str | bool:
    """The last whole checkpoint in a folder of the Trainer's; True, for the Trainer's own error, if there is none.

    Raises:
        ValueError: there are only unfinished ones.
    """
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit() and path.is_dir()]
    whole = [path for path in found if is_whole(path)]
    if found and not whole:
        raise ValueError(
            f"{str(folder)!r} has no whole checkpoint, only {found[0].name!r}, which was not finished: delete it and "
            "start again."
        )
    return str(max(whole, key=lambda path: int(path.name.removeprefix(_PREFIX)))) if whole else True
