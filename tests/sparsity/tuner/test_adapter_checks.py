"""An adapter's files from strangers: wrong types, lengths and names are told, by name, before PEFT works with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from hf_efficient import BiDSTConfig
from tests.fuzzing import limited_memory
from tests.sparsity.models import ConvNet, disturb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = BiDSTConfig(sparsity=0.8, target_modules=["hidden", "conv2"], modules_to_save=["fc"], train_others=False)
    model = get_peft_model(ConvNet(), config)
    disturb(model)
    model.save_pretrained(tmp_path)
    return tmp_path


def changed(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


FIELDS: list[dict[str, Any]] = [
    {"counts": 3},
    {"counts": [1, 2]},
    {"counts": None},
    {"counts": {"hidden": "288"}},
    {"counts": {"hidden": 288.0}},
    {"counts": {"hidden": True}},
    {"counts": {"hidden": -1}},
    {"counts": {"hidden": 0}},
    {"counts": {"hidden": 10**12}},
    {"counts": {"hidden": [288]}},
    {"counts": {"hidden": float("nan")}},
    {"counts": {"hidden": 17}},
    {"checksum": "0"},
    {"checksum": -1},
    {"checksum": 10**30},
    {"checksum": 1.5},
    {"checksum": [1]},
    {"target_modules": 5},
    {"target_modules": [["hidden"]]},
    {"target_modules": [None]},
    {"exclude_modules": {"a": 1}},
    {"modules_to_save": "fc"},
    {"modules_to_save": [""]},
    {"modules_to_save": [1]},
    {"layers_to_transform": "all"},
    {"layers_to_transform": [0.5]},
    {"train_others": "no"},
    {"ensure_weight_tying": 1},
    {"inference_mode": "yes"},
    {"seed": 2**40},
    {"seed": "0"},
    {"candidates": float("inf")},
    {"levelling": float("nan")},
    {"initial_sparsity": "half"},
    {"sparsity": [0.5]},
    {"sparsity": 10**400},
    {"update_interval": 1e3},
    {"init_steps": True},
    {"target": ["weight"]},
    {"topology": {}},
    {"peft_type": 3},
    {"self": 1},
]


@pytest.mark.parametrize("fields", FIELDS, ids=[str(f)[:40] for f in FIELDS])
def test_a_config_of_wrong_types_or_sizes_is_refused(folder: Path, fields: dict[str, Any]) -> None:
    changed(folder, **fields)
    with limited_memory(2**28), pytest.raises(ValueError, match=r"adapter_config\.json") as told:
        PeftModel.from_pretrained(ConvNet(), folder, config=BiDSTConfig.from_pretrained(str(folder)))
    assert len(str(told.value)) < 700
    assert "\n" not in str(told.value)


def weights(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    changed(folder, checksum=None)  # whoever forges a file forges its checksum too


HIDDEN = "base_model.model.hidden.bidst_weight."
WEIGHTS = {
    "a value less": lambda t: t.update({HIDDEN + "values": t[HIDDEN + "values"][:-1].clone()}),
    "an index less": lambda t: t.update({HIDDEN + "indices": t[HIDDEN + "indices"][:-1].clone()}),
    "both less": lambda t: t.update({HIDDEN + n: t[HIDDEN + n][:-1].clone() for n in ("indices", "values")}),
    "indices are floats": lambda t: t.update({HIDDEN + "indices": t[HIDDEN + "indices"].float()}),
    "indices are 16 bits": lambda t: t.update({HIDDEN + "indices": t[HIDDEN + "indices"].short()}),
    "indices in two dimensions": lambda t: t.update({HIDDEN + n: t[HIDDEN + n][None] for n in ("indices", "values")}),
    "values are whole numbers": lambda t: t.update({HIDDEN + "values": t[HIDDEN + "values"].int()}),
    "an index twice": lambda t: t[HIDDEN + "indices"].__setitem__(0, t[HIDDEN + "indices"][1]),
    "an index beyond": lambda t: t[HIDDEN + "indices"].__setitem__(0, 1440),
    "a negative index": lambda t: t[HIDDEN + "indices"].__setitem__(0, -1),
    "no values": lambda t: t.pop(HIDDEN + "values"),
    "no layer": lambda t: [t.pop(HIDDEN + n) for n in ("indices", "values")],
    "a module that was saved whole is absent": lambda t: t.pop("base_model.model.fc.bias"),
}


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_belong_to_the_config_are_refused(folder: Path, change: Any) -> None:
    weights(folder, change)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors|hidden: the indices"):
        PeftModel.from_pretrained(ConvNet(), folder)


def test_files_that_are_no_json_or_no_safetensors_are_named(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged: not a whole safetensors file"):
        PeftModel.from_pretrained(ConvNet(), folder)
    for text in ("", "[]", "{", "\xff", "[" * 100_000):
        (folder / "adapter_config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"adapter_config\.json (is not valid JSON|holds a JSON list)"):
            BiDSTConfig.from_pretrained(str(folder))


def test_what_is_as_it_was_saved_is_loaded_and_a_config_serves_again_for_another_model(folder: Path) -> None:
    model = PeftModel.from_pretrained(ConvNet(), folder)
    state = {n: t for n, t in model.state_dict().items() if "hidden.bidst_weight" in n}
    saved = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(t, saved[n.replace(".default", "")]) for n, t in state.items())
    config = PeftConfig.from_pretrained(str(folder))
    wider = ConvNet()
    wider.fc = nn.Linear(20, 9)
    assert get_peft_model(wider, config).base_model.model.fc.weight.shape == (9, 20)
