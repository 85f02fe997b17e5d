"""A sparse checkpoint and its config are replaced together, in a folder that holds other things too."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_efficient import TokenPrunerConfig, load_sparse, save_sparse
from hf_efficient.files import locked
from hf_efficient.files.interrupted_save import MARKER
from hf_efficient.representation.generator import TokenGenerator
from hf_efficient.sparsity.storage.checkpoint import FILE_NAME
from tests.files.disks import no_room, small_disk
from tests.files.kills import changes, killed_before
from tests.tiny import pruned


def model(number: int) -> LlamaForCausalLM:
    """A sparse model; its config and its weights say which. Of the shapes of every other."""
    torch.manual_seed(number)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32 + number,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    for parameter in made.parameters():
        parameter.data.mul_(torch.rand_like(parameter) < 0.2)
    return made.eval()


def number_of(folder: Path) -> int:
    """Which model is there; fails for none, and for one with the config of another."""
    found = load_sparse(folder)
    number = int(found.config.max_position_embeddings) - 32  # type: ignore[union-attr, arg-type]
    expected = model(number).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    return number


def check_kill(folder: Path, step: int) -> bool:
    save_sparse(model(1), folder)
    (folder / "notes.txt").write_text("another's")
    killed = killed_before(step, partial(save_sparse, model(2), folder))
    assert number_of(folder) in (1, 2)
    save_sparse(model(3), folder)
    assert number_of(folder) == 3
    assert sorted(os.listdir(folder)) == [
        "README.md", "config.json", "generation_config.json", FILE_NAME, "notes.txt",
    ]  # fmt: skip
    return killed


def test_a_kill_before_any_step_leaves_the_old_model_or_the_new(tmp_path: Path) -> None:
    step = 0
    while check_kill(tmp_path / str(step), step):
        step += 1
    assert step > 20


def with_pruner(number: int) -> nn.Module:
    """A model with a pruner that has a generator; the weights of each, and the pruner's config, say which."""
    made, _ = pruned("llava", method="itg", budget=number, generator=generator(number))
    for parameter in made.model.language_model.parameters():
        parameter.data.fill_(number)
    return made


def generator(number: int) -> TokenGenerator:
    torch.manual_seed(number)
    made = TokenGenerator(32, 8, 1, 2)
    torch.nn.init.normal_(made.up.weight)
    return made


def number_with_pruner(folder: Path) -> int:
    """Which model is there; fails for one with the pruner of another."""
    found = load_sparse(folder)
    pruner = TokenPrunerConfig.from_pretrained(folder)
    number = int(pruner.budget)
    assert all(bool((p == number).all()) for p in found.model.language_model.parameters())
    assert pruner.generator is not None
    assert torch.equal(pruner.generator.up.weight, generator(number).up.weight)
    return number


def check_kill_with_pruner(folder: Path, step: int) -> bool:
    save_sparse(with_pruner(1), folder)
    killed = killed_before(step, partial(save_sparse, with_pruner(2), folder))
    number = number_with_pruner(folder)
    assert number in (1, 2)
    TokenPrunerConfig(method="itg", budget=7).save_pretrained(folder)  # alone, it is what is read from then on
    assert TokenPrunerConfig.from_pretrained(folder).budget == 7
    assert not (folder / MARKER).exists()
    save_sparse(with_pruner(3), folder)
    assert number_with_pruner(folder) == 3
    return killed


def test_the_pruner_of_a_model_is_replaced_with_it(tmp_path: Path) -> None:
    save_sparse(with_pruner(1), tmp_path / "first")
    total = changes(partial(save_sparse, with_pruner(2), tmp_path / "first"))
    for step in range(total - 24, total, 6):  # one file after the other gets its name
        assert check_kill_with_pruner(tmp_path / str(step), step)


@pytest.mark.slow
def test_a_kill_before_any_step_leaves_a_model_and_its_pruner(tmp_path: Path) -> None:
    step = 0
    while check_kill_with_pruner(tmp_path / str(step), step):
        step += 1
    assert step > 20


@pytest.mark.parametrize("size", [10, 1000, 5000])
def test_no_room_keeps_the_old_model(tmp_path: Path, size: int) -> None:
    save_sparse(model(1), tmp_path)
    before = sorted(os.listdir(tmp_path))
    with no_room(size), pytest.raises(OSError, match="cannot be written"):
        save_sparse(model(2), tmp_path)
    assert number_of(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.slow
@pytest.mark.parametrize("size", [4096 * n for n in range(2, 14)])
def test_a_full_disk_keeps_the_old_model(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        saved = 0
        try:
            for number in (1, 2):
                save_sparse(model(number), disk)
                saved = number
        except OSError as error:
            assert "no space is left" in str(error)  # noqa: PT017  not all sizes are too small
        if saved or (disk / FILE_NAME).exists():
            assert number_of(disk) in (saved, saved + 1)


def test_a_config_is_edited_as_before(tmp_path: Path) -> None:
    save_sparse(model(1), tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"max_position_embeddings": 33', '"max_position_embeddings": 64')
    )
    assert load_sparse(tmp_path).config.max_position_embeddings == 64  # type: ignore[union-attr]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    save_sparse(model(1), tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_one_process_saves_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / FILE_NAME), pytest.raises(BlockingIOError, match=FILE_NAME):
        save_sparse(model(1), tmp_path)
    assert not os.listdir(tmp_path)
