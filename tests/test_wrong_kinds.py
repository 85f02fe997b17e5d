"""What is given in place of a model, a folder or batches is named, and what was expected; nothing is changed."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_efficient import (
    BiDSTConfig,
    compress,
    decompress,
    keep_sparsity,
    load_sparse,
    prune_sparsegpt,
    prune_wanda,
    save_sparse,
    train_sparsely,
)
from hf_efficient.files import make_folder
from hf_efficient.representation.evaluation.as_dataset import evaluation_dataset
from hf_efficient.representation.evaluation.questions import load_evaluation_set

TEXTS = [torch.randn(3, 4)]


@pytest.mark.parametrize(
    "call",
    [
        lambda model: prune_wanda(model, TEXTS),
        lambda model: prune_sparsegpt(model, TEXTS),
        lambda model: save_sparse(model, "folder"),
        keep_sparsity,
        compress,
        decompress,
        lambda model: train_sparsely(model, torch.optim.SGD([torch.zeros(1)]), 3),
    ],
)
@pytest.mark.parametrize(("given", "named"), [(None, "None"), (BiDSTConfig, "class"), ("a/folder", "'a/folder'")])
def test_what_is_no_model_is_named(call: Callable[[Any], Any], given: Any, named: str) -> None:
    with pytest.raises(TypeError, match=rf"^model=.*{named}.* is not a model; expected a torch.nn.Module"):
        call(given)


@pytest.mark.parametrize("prune", [prune_wanda, prune_sparsegpt])
@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (None, r"batches=None cannot be gone through; expected .*\[batch\]"),
        (7, "batches=7 cannot be gone through"),
        (b"text", "batches is one bytes; expected several"),
        (np.zeros((3, 4), np.float32), "batches is one ndarray; expected several"),
        ([np.zeros((3, 4), np.float32)], r"batch 0 is .*array.*; expected .*torch.as_tensor"),
        ([torch.zeros(3, 4), b"text"], "batch 1 is b'text'; expected a mapping"),
        ([None], "batch 0 is None; expected a mapping"),
        ([(np.zeros((3, 4), np.float32),)], "batch 0 holds .*array.*; expected tensors"),
        ([{"input": np.zeros((3, 4), np.float32)}], "batch 0 holds .*array.*; expected tensors"),
    ],
)
def test_what_are_no_batches_is_named_and_nothing_is_pruned(prune: Any, batches: Any, said: str) -> None:
    layer = nn.Linear(4, 4)
    model, before = nn.Sequential(layer), layer.weight.clone()
    with pytest.raises(ValueError, match=said):
        prune(model, batches, target_modules=["0"])
    assert torch.equal(layer.weight, before)


class Places:
    """A model's own kind of batch."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class OwnKinds(nn.Module):
    """Takes what torch's layers do not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Any, scale: Any = 1.0) -> torch.Tensor:
        out: torch.Tensor = self.layer(torch.as_tensor(x.x if isinstance(x, Places) else x)) * float(scale)
        return out


class ByPosition:
    """A dataset of torch: it has no __iter__."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"x": [self.x][place]}


@pytest.mark.parametrize("prune", [prune_wanda, prune_sparsegpt])
@pytest.mark.parametrize(
    "made",
    [
        ByPosition,
        lambda x: [Places(x)],
        lambda x: [x.numpy()],
        lambda x: [(x.numpy(), np.float32(1))],
        lambda x: ({"x": x, "scale": np.int64(1)} for _ in range(1)),
    ],
)
def test_batches_of_any_kind_that_the_model_takes_prune_as_tensors_do(prune: Any, made: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 4)
    model = OwnKinds()
    plain = copy.deepcopy(model)
    prune(model, made(x), target_modules=["layer"])
    prune(plain, [x], target_modules=["layer"])
    assert torch.equal(model.layer.weight, plain.layer.weight)


def test_an_error_of_the_model_on_tensors_stays_its_own() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        prune_wanda(nn.Sequential(nn.Linear(4, 4)), [torch.zeros(3, 5)], target_modules=["0"])


@pytest.mark.parametrize("names", [3, [3]])
def test_names_that_are_none_are_named(names: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"names=3 .*; expected"):
        prune_wanda(model, TEXTS, target_modules=names)
    with pytest.raises(ValueError, match=r"names=3 .*; expected"):
        keep_sparsity(model, target_modules=names)


@pytest.mark.parametrize(
    "call", [lambda path: save_sparse(nn.Linear(2, 2), path), load_sparse, evaluation_dataset, load_evaluation_set]
)
@pytest.mark.parametrize("given", [None, 3])
def test_what_is_no_folder_is_named(call: Callable[[Any], Any], given: Any) -> None:
    with pytest.raises(TypeError, match=rf"^folder(_or_id)?={given} is not a path; expected"):
        call(given)


def test_a_folder_that_cannot_be_made_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot be made.*choose another folder") as raised:
            make_folder(folder)
        assert raised.value.filename == str(folder)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc, where no folder can be made")
def test_a_model_is_not_said_to_be_missing_where_no_folder_can_be_made() -> None:
    with pytest.raises(OSError, match=r"cannot be made.*/proc/x"):
        save_sparse(nn.Linear(2, 2), "/proc/x")
