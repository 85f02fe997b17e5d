"""A disk that fills up while a Trainer saves: what was whole stays so, and training goes on from it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_efficient import BiDSTTrainer
from hf_efficient.files.checkpoints import is_whole, recover_checkpoints
from tests.files.disks import small_disk
from tests.optimization.training.trainers import METHODS, build, same, state
from tests.sparsity.models import llama
from tests.sparsity.tuner import test_trainer as sparse

OPTIONS: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
SHARES = [0.2, 0.5, 0.8, 1.1, 1.5, 1.9, 2.1, 2.4, 2.8, 3.3]  # of what one checkpoint takes


def sharp(folder: Path, **options: Any) -> Any:
    return build(folder, METHODS["s2sam"], **OPTIONS, **options)


def sparse_one(folder: Path, **options: Any) -> Any:
    args = sparse.arguments(folder, **OPTIONS, **options)
    return BiDSTTrainer(llama(), args, sparsity_config=sparse.config(), train_dataset=sparse.Sentences())


def run(make: Callable[..., Any], folder: Path, resume: bool = False, **options: Any) -> Any:
    trainer = make(folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def run_until_full(make: Callable[..., Any], folder: Path, **options: Any) -> bool:
    """Whether it came to its end; else what was said is checked."""
    try:
        run(make, folder, **options)
    except OSError as error:
        assert re.search(r"^[^\n]*cannot be written: no space is left[^\n]*$", str(error))  # noqa: PT017  some suffice
        return False
    return True


def taken(folder: Path) -> int:
    """Bytes that the files of a folder take, in pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("make", [sharp, sparse_one])
def test_a_full_disk_leaves_checkpoints_to_go_on_from(make: Callable[..., Any], tmp_path: Path) -> None:
    expected = state(run(make, tmp_path / "whole").model)
    one = taken(tmp_path / "whole" / "checkpoint-2")
    ended = []
    for share in SHARES:
        with small_disk(tmp_path / "disk", int(one * share)) as disk:
            ended.append(run_until_full(make, disk / "run"))
            room = tmp_path / f"{share}"
            shutil.copytree(disk / "run", room)
        whole = any(is_whole(path) for path in room.glob("checkpoint-*"))
        assert whole or share < 1.5
        assert same(state(run(make, room, resume=whole).model), expected), share
    assert not all(ended)
    assert any(ended)


@pytest.mark.slow
@pytest.mark.parametrize("make", [sharp, sparse_one])
def test_a_full_disk_leaves_the_old_checkpoint_or_the_new(make: Callable[..., Any], tmp_path: Path) -> None:
    run(make, tmp_path / "old", learning_rate=0.5)
    run(make, tmp_path / "new")
    one, ended = taken(tmp_path / "old" / "checkpoint-2"), []
    for share in SHARES:
        with small_disk(tmp_path / "disk", int(one * (2.9 + share))) as disk:
            try:
                shutil.copytree(tmp_path / "old", disk / "run")
            except (OSError, shutil.Error):
                continue  # not even the old ones have room
            ended.append(run_until_full(make, disk / "run"))
            recover_checkpoints(disk / "run")  # as resuming does first
            for path in sorted((tmp_path / "old").glob("checkpoint-*")):
                found = disk / "run" / path.name
                assert is_whole(found)
                assert {name: weights(found, name) for name in ("model", "optimizer")} in [
                    {name: weights(tmp_path / which / path.name, name) for name in ("model", "optimizer")}
                    for which in ("old", "new")
                ]
    assert not all(ended)


def weights(folder: Path, which: str) -> bytes:
    if which == "optimizer":
        return (folder / "optimizer.pt").read_bytes()
    return next(folder.glob("*model.safetensors")).read_bytes()
