"""A config and the weights it names are replaced together, in a folder that holds other things too."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from hf_efficient import TokenPrunerConfig
from hf_efficient.files import locked
from hf_efficient.representation.config_files import CONFIG_NAME, GENERATOR_NAME
from hf_efficient.representation.generator import TokenGenerator
from tests.files.disks import no_room, small_disk
from tests.files.kills import killed_before


def config(seed: int | None) -> TokenPrunerConfig:
    """With a generator of its own for each seed; None: without one."""
    if seed is None:
        return TokenPrunerConfig(method="itg", budget=9)
    torch.manual_seed(seed)
    generator = TokenGenerator(8, 8, 1, 2)
    torch.nn.init.normal_(generator.up.weight)
    return TokenPrunerConfig(method="itg", budget=seed, generator=generator)


def seed_of(folder: Path) -> int | None:
    """Which config is there; fails for none, and for one with weights of another."""
    found = TokenPrunerConfig.from_pretrained(folder)
    if found.generator is None:
        assert found.budget == 9
        return None
    mine = config(int(found.budget)).generator
    assert mine is not None
    assert torch.equal(found.generator.up.weight, mine.up.weight)
    return int(found.budget)


PAIRS = [(1, 2), (1, None), (None, 1)]


def check_kill(folder: Path, step: int, old: int | None, new: int | None) -> bool:
    config(7).save_pretrained(folder)
    config(old).save_pretrained(folder)
    (folder / "model.safetensors").write_text("another's")
    killed = killed_before(step, partial(config(new).save_pretrained, folder))
    assert seed_of(folder) in (old, new)
    config(3).save_pretrained(folder)  # what the kill left does no harm, and goes
    assert seed_of(folder) == 3
    assert len(list(folder.glob("*generator*"))) == 1
    assert (folder / "model.safetensors").read_text() == "another's"
    assert not list(folder.glob(".*"))
    return killed


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_kill_before_any_step_leaves_the_old_or_the_new(tmp_path: Path, old: int | None, new: int | None) -> None:
    step = 0
    while check_kill(tmp_path / str(step), step, old, new):
        step += 1
    assert step > 8


@pytest.mark.parametrize("size", [100, 2000])
def test_no_room_keeps_the_old_pair(tmp_path: Path, size: int) -> None:
    config(1).save_pretrained(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with no_room(size), pytest.raises(OSError, match="cannot be written"):
        config(2).save_pretrained(tmp_path)
    assert seed_of(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.slow
@pytest.mark.parametrize("size", [4096 * n for n in range(2, 14)])
def test_a_full_disk_keeps_the_old_pair(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        try:
            config(1).save_pretrained(disk)
            config(2).save_pretrained(disk)
        except OSError as error:
            assert "no space is left" in str(error)  # noqa: PT017  not all sizes are too small
            if (disk / CONFIG_NAME).exists():
                assert seed_of(disk) == 1
        else:
            assert seed_of(disk) == 2


def test_pairs_take_turns(tmp_path: Path) -> None:
    for seed in (1, 2, 2, 1, None, 2, 3):
        config(seed).save_pretrained(tmp_path)
        assert seed_of(tmp_path) == seed
        assert len(os.listdir(tmp_path)) == (1 if seed is None else 2)


def test_a_folder_of_an_earlier_version_is_read_and_replaced(tmp_path: Path) -> None:
    config(1).save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert values["generator"].pop("file") == GENERATOR_NAME
    del values["generator"]["sha256"]
    (tmp_path / CONFIG_NAME).write_text(json.dumps(values))
    assert seed_of(tmp_path) == 1
    config(2).save_pretrained(tmp_path)
    assert seed_of(tmp_path) == 2
    assert len(os.listdir(tmp_path)) == 2


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        config(seed).save_pretrained(tmp_path / str(seed))
    os.replace(tmp_path / "2" / GENERATOR_NAME, tmp_path / "1" / GENERATOR_NAME)
    with pytest.raises(ValueError, match="is not the file"):
        TokenPrunerConfig.from_pretrained(tmp_path / "1")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "model.safetensors", 3, None, ""])
def test_weights_lie_beside_their_config(tmp_path: Path, name: object) -> None:
    config(1).save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG_NAME).read_text())
    values["generator"]["file"] = name
    (tmp_path / CONFIG_NAME).write_text(json.dumps(values))
    with pytest.raises(ValueError, match="file="):
        TokenPrunerConfig.from_pretrained(tmp_path)


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    for name in ("generator-0123456789abcdef.safetensors", "generator.safetensors.bak", "notes.txt"):
        (tmp_path / name).write_text("theirs")
    for seed in (1, 2, None):
        config(seed).save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "generator-0123456789abcdef.safetensors", "generator.safetensors.bak", "notes.txt", CONFIG_NAME,
    ]  # fmt: skip


def test_one_process_saves_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / CONFIG_NAME), pytest.raises(BlockingIOError, match=CONFIG_NAME):
        config(1).save_pretrained(tmp_path)
    assert not os.listdir(tmp_path)
