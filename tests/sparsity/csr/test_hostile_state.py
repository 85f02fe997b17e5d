"""State dicts from elsewhere: indices are looked at when they are loaded, before a product reads memory by them."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_model, save_file
from torch import Tensor, nn

from hf_efficient import compress
from hf_efficient.sparsity.csr.linear import CSRLinear
from hf_efficient.sparsity.sparse_weight import SparseWeight
from tests.sparsity.csr.test_compress import sparse_llama
from tests.sparsity.models import WEIGHT, config_of, layers, llama, logits

X = torch.randn(5, 32)


def compressed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(CSRLinear(torch.randn(16, 32) * (torch.rand(16, 32) < 0.2), torch.zeros(16)))


def by_state_dict(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    model.load_state_dict(state)


def by_assigning(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    model.load_state_dict(state, assign=True)


def by_safetensors(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    save_file(state, folder / "state.safetensors")
    load_model(model, folder / "state.safetensors")


def by_torch_load(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    torch.save(state, folder / "state.pt")
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True))


def by_hand(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """As loaders that replace tensors without asking the module."""
    for name in ("starts", "columns", "values"):
        setattr(model[0], name, state[f"0.{name}"])
    model(X)


def in_place(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    for name in ("starts", "columns"):
        getattr(model[0], name).copy_(state[f"0.{name}"])
    model(X)


CHANGES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "columns beyond the row": lambda s: s["0.columns"].add_(100),
    "columns far away": lambda s: s["0.columns"].fill_(5 * 10**8),
    "a negative column": lambda s: s["0.columns"][3:4].fill_(-1),
    "a column twice": lambda s: s["0.columns"].copy_(s["0.columns"].roll(1)),
    "starts beyond the values": lambda s: s["0.starts"][5:].add_(1000),
    "starts that fall": lambda s: s["0.starts"].copy_(s["0.starts"].flip(0)),
    "negative starts": lambda s: s["0.starts"].sub_(10),
}


@pytest.mark.parametrize("load", [by_state_dict, by_assigning, by_safetensors, by_torch_load, by_hand, in_place])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_csr_layer_refuses_indices_that_are_not_its_own(change: Any, load: Any, tmp_path: Path) -> None:
    model = compressed()
    state = copy.deepcopy(model.state_dict())
    change(state)
    with pytest.raises(ValueError, match="the indices of the active weights are damaged"):
        load(model, state, tmp_path)


def test_a_csr_layer_takes_other_dtypes_and_lengths_of_indices_by_no_way() -> None:
    for change in ({"columns": torch.zeros(3)}, {"starts": torch.zeros(17)}, {"values": torch.zeros(9)}):
        model = compressed()
        for name, tensor in change.items():
            setattr(model[0], name, tensor)
        with pytest.raises(ValueError, match=r"are damaged: (lengths|dtypes)"):
            model(X)


def test_what_was_pickled_is_checked_again() -> None:
    model = compressed()
    model(X)
    model[0].columns.add_(100)
    sparse = SparseWeight((4, 8), 5)
    sparse.dense()
    sparse.indices.add_(100)
    for thing, use in ((model, lambda m: m(X)), (sparse, lambda w: w.dense())):
        again = pickle.loads(pickle.dumps(thing))
        with pytest.raises(ValueError, match="the indices of the active weights are damaged"):
            use(again)


def test_what_fits_is_loaded_and_used_and_copies_are_their_own() -> None:
    model, state = compressed(), compressed().state_dict()
    before = model(X)
    twin = copy.deepcopy(model)
    for assign in (False, True):
        model.load_state_dict({**state, "0.values": 2 * state["0.values"]}, assign=assign)
        assert torch.allclose(model(X), 2 * before, atol=1e-5)
    model[0].values.mul_(0.5)
    assert torch.allclose(model(X), before, atol=1e-5)
    twin[0].values.zero_()
    assert not twin(X).any()
    assert torch.allclose(model(X), before, atol=1e-5)


def test_a_compressed_language_model_refuses_shifted_columns() -> None:
    model = compress(sparse_llama(), backend="csr")
    state = model.state_dict()
    name = next(key for key in state if key.endswith("columns"))
    expected, good = logits(model), state[name].clone()
    with pytest.raises(ValueError, match=name.removesuffix(".columns")):
        model.load_state_dict({**state, name: good + 100})
    assert torch.equal(logits(model), expected)  # nothing of it was taken


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "too large": lambda i: i.index_fill(0, torch.tensor([0]), 2**31 - 1),
    "negative": lambda i: i.index_fill(0, torch.tensor([0]), -1),
    "twice": lambda i: i.index_fill(0, torch.tensor([0]), int(i[1])),
    "no whole numbers": lambda i: i.float() + 0.5,
}


@pytest.mark.parametrize("change", PLACES.values(), ids=PLACES)
def test_a_sparse_weight_refuses_indices_that_are_not_its_own(change: Any) -> None:
    model = get_peft_model(llama(), config_of(WEIGHT))
    state = model.state_dict()
    name = next(key for key in state if key.endswith("indices"))
    for assign in (False, True):
        with pytest.raises(ValueError, match="indices of the active weights are damaged"):
            model.load_state_dict({**state, name: change(state[name].clone())}, assign=assign)
    weight = next(iter(layers(model).values())).sparse_weight("default")
    weight.indices = change(weight.indices)  # transformers' own loader asks nobody
    with pytest.raises(ValueError, match="indices of the active weights are damaged"):
        logits(model)
