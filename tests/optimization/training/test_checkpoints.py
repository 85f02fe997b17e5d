"""A checkpoint that was not written to its end is not resumed from; the one before it is."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerState

from hf_efficient.files.checkpoints import RECORD, is_whole, recover_checkpoints
from tests.files.disks import no_room
from tests.files.kills import killed_before
from tests.optimization.training.trainers import METHODS, build, same, state, trained

OPTIONS: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
SAVES = tuple((Trainer, name) for name in ("save_model", "_save_optimizer_and_scheduler", "_save_rng_state"))
STEPS = (*SAVES, (TrainerState, "save_to_json"), (torch, "save"), (shutil, "rmtree"))


def run(folder: Path, resume: bool | str = False, method: str = "s2sam", **options: Any) -> Any:
    trainer = build(folder, METHODS[method], **{**OPTIONS, **options})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def check_kill(folder: Path, step: int, expected: Any, **options: Any) -> bool:
    killed = killed_before(step, partial(run, folder, **options), STEPS)
    before = {path.name for path in folder.glob("checkpoint-*") if is_whole(path)}
    resumed = run(folder, resume=bool(before), **options)
    assert same(state(resumed.model), expected), step
    assert not list(folder.glob(".checkpoint*"))
    return killed


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("step", [9, 13])
def test_a_kill_while_a_checkpoint_is_written(tmp_path: Path, step: int) -> None:
    expected = state(trained(tmp_path / "whole", METHODS["s2sam"], max_steps=6, optim="adamw_torch").model)
    assert check_kill(tmp_path / "run", step, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("limit", [None, 1])
def test_a_kill_before_any_step_of_saving(tmp_path: Path, limit: int | None) -> None:
    expected = state(trained(tmp_path / "whole", METHODS["s2sam"], max_steps=6, optim="adamw_torch").model)
    step = 0
    while check_kill(tmp_path / str(step), step, expected, save_total_limit=limit):
        step += 1
    assert step > 20


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("step", [5, 9])
def test_a_checkpoint_that_is_written_again_stays_until_then(tmp_path: Path, step: int) -> None:
    """An earlier run's checkpoints in the same folder: each is the old or the new one, whatever is killed."""
    run(tmp_path, learning_rate=0.5)
    old = {path.name: whole_state(path) for path in tmp_path.glob("checkpoint-*")}
    (tmp_path / "checkpoint-2" / "notes.txt").write_text("mine")
    assert killed_before(step, partial(run, tmp_path), STEPS)
    recover_checkpoints(tmp_path)  # as resuming does first
    reference = tmp_path.with_name("reference")
    run(reference)
    for name, content in old.items():
        assert whole_state(tmp_path / name) in (content, whole_state(reference / name))
    assert (tmp_path / "checkpoint-2" / "notes.txt").read_text() == "mine"


def whole_state(folder: Path) -> dict[str, bytes]:
    assert is_whole(folder)
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "sam_memory.safetensors")}


def test_an_unfinished_checkpoint_is_named(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    (tmp_path / "checkpoint-2" / RECORD).write_text("{")
    with pytest.raises(ValueError, match="no whole checkpoint, only 'checkpoint-2'"):
        run(tmp_path, resume=True)
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        run(tmp_path, resume=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        run(tmp_path / "nothing", resume=True)


def test_no_room_is_said_and_the_checkpoint_before_is_resumed(tmp_path: Path) -> None:
    constant = {"lr_scheduler_type": "constant"}  # the shorter run has the same rates
    expected = state(run(tmp_path / "whole", **constant).model)
    run(tmp_path / "run", max_steps=2, **constant)
    with no_room(10_000), pytest.raises(OSError, match="checkpoint-4' cannot be written"):
        run(tmp_path / "run", resume=True, **constant)
    assert same(state(run(tmp_path / "run", resume=True, **constant).model), expected)
