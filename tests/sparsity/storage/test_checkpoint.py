"""Sparse checkpoints: exact, small, and hard to fool."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from hf_efficient import BiDSTConfig, compress, load_sparse, save_sparse
from hf_efficient.sparsity.csr.linear import CSRLinear
from hf_efficient.sparsity.storage.checkpoint import FILE_NAME, decode, encode, read_sparse
from tests.adapters import BY_TRANSFORMERS
from tests.fuzzing import limited_memory
from tests.sparsity.csr.test_compress import sparse_llama
from tests.sparsity.models import disturb, llama, logits


def test_every_kind_of_tensor_comes_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    state = {
        "sparse": torch.randn(13, 17) * (torch.rand(13, 17) < 0.1),
        "bf16": (torch.randn(9, 9) * (torch.rand(9, 9) < 0.2)).bfloat16(),
        "half": (torch.randn(4, 8) * (torch.rand(4, 8) < 0.2)).half(),
        "dense": torch.randn(5, 5),
        "zeros": torch.zeros(100),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "ints": torch.tensor([0, 0, 0, 7] * 9),
        "bools": torch.rand(30) < 0.1,
        "minus zero": torch.cat([torch.zeros(63), torch.tensor([-0.0])]),
        "nan": torch.cat([torch.zeros(63), torch.tensor([torch.nan])]),
        "transposed": (torch.randn(8, 6) * (torch.rand(8, 6) < 0.2)).t(),
    }
    tensors, layout = encode(state)
    again = decode(tensors, json.loads(json.dumps(layout)))
    assert list(again) == list(state)
    for name, tensor in state.items():
        assert (again[name].dtype, again[name].shape) == (tensor.dtype, tensor.shape), name
        positive = tensor + 0 if tensor.is_floating_point() else tensor  # the sign of a zero is not kept
        assert torch.equal(again[name].flatten().view(torch.uint8), positive.contiguous().flatten().view(torch.uint8))


@pytest.mark.parametrize(("sparsity", "times"), [(0.8, 4.3), (0.9, 7.9), (0.95, 15.8), (0.98, 39)])
def test_file_is_smaller_by_what_the_format_promises(sparsity: float, times: float, tmp_path: Path) -> None:
    model = nn.Linear(1000, 1000, bias=False)
    active = torch.randperm(1_000_000, generator=torch.Generator().manual_seed(0))[: round((1 - sparsity) * 1e6)]
    mask = torch.zeros(1_000_000).index_fill_(0, active, 1.0).view(1000, 1000)
    model.weight.data.mul_(mask)
    size = save_sparse(model, tmp_path).stat().st_size
    assert 4_000_000 / size >= times
    again = load_sparse(tmp_path, nn.Linear(1000, 1000, bias=False))
    assert torch.equal(again.weight, model.weight)


def test_a_transformers_model_comes_back_by_config_class_or_module(tmp_path: Path) -> None:
    model = sparse_llama()
    expected = logits(model)
    save_sparse(model, tmp_path / "sparse")
    for target in (None, AutoModelForCausalLM, type(model), llama()):
        assert torch.equal(logits(load_sparse(tmp_path / "sparse", target)), expected)
    load_sparse(tmp_path / "sparse").save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")), expected)


def test_a_subfolder_is_read_and_a_token_pruner_travels(tmp_path: Path) -> None:
    from hf_efficient import TokenPrunerConfig
    from tests.tiny import pruned

    model = sparse_llama()
    save_sparse(model, tmp_path / "all" / "one")
    assert torch.equal(logits(load_sparse(tmp_path / "all", subfolder="one")), logits(model))
    with pytest.raises(FileNotFoundError, match="two"):
        load_sparse(tmp_path / "all", subfolder="two")
    attached, _ = pruned("llava", budget=5)
    save_sparse(attached, tmp_path / "vlm")
    assert TokenPrunerConfig.from_pretrained(tmp_path / "vlm") == attached.token_pruner.config


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = llama(tied=True)
    path = save_sparse(model, tmp_path)
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    assert sum("embed_tokens" in n or "lm_head" in n for n in names) == 1
    again = load_sparse(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_compressed_models_are_saved_and_loaded_compressed(tmp_path: Path) -> None:
    model = sparse_llama()
    expected = logits(model)
    save_sparse(compress(model, backend="csr"), tmp_path)
    assert torch.equal(logits(load_sparse(tmp_path)), expected)
    big = nn.Sequential(nn.Linear(600, 600), nn.ReLU())
    big[0].weight.data.mul_(torch.rand(600, 600) < 0.01)
    save_sparse(big, tmp_path / "big")
    again = load_sparse(tmp_path / "big", nn.Sequential(nn.Linear(600, 600), nn.ReLU()), compressed=True)
    assert isinstance(again[0], CSRLinear)


def test_the_sparse_model_of_an_adapter_goes_through_all_of_it(tmp_path: Path) -> None:
    model = get_peft_model(llama(), BiDSTConfig(sparsity=0.9, task_type="CAUSAL_LM"))
    disturb(model)
    expected = logits(model)
    with pytest.raises(ValueError, match="merge_and_unload"):
        save_sparse(model, tmp_path)
    save_sparse(model.merge_and_unload(), tmp_path)
    assert torch.equal(logits(load_sparse(tmp_path)), expected)


def test_nothing_is_left_behind_when_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sparse(sparse_llama(), tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()

    def fails(tensors: Any, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("hf_efficient.sparsity.storage.checkpoint.save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save_sparse(llama(), tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_sparse(nn.Linear(8, 4), tmp_path)
    with pytest.raises(ValueError, match=r"does not fit Sequential: it lacks \['0.bias', '0.weight'\]"):
        load_sparse(tmp_path, nn.Sequential(nn.Linear(8, 4)))
    with pytest.raises(ValueError, match=r"'weight' has shape \(4, 8\), the model's has \(4, 9\)"):
        load_sparse(tmp_path, nn.Linear(9, 4))
    with pytest.raises(FileNotFoundError, match="pass the module itself"):
        load_sparse(tmp_path)
    with pytest.raises(FileNotFoundError, match=FILE_NAME):
        load_sparse(tmp_path.parent, nn.Linear(8, 4))
    with pytest.raises(ValueError, match="needs a folder"):
        save_sparse(nn.Linear(8, 4), tmp_path / FILE_NAME)
    save_file({"weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="sparse_format=None"):
        load_sparse(tmp_path / "plain.safetensors", nn.Linear(8, 4))


def test_a_config_cannot_name_code_to_run(tmp_path: Path) -> None:
    save_sparse(sparse_llama(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["os.system"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"architectures='os.system' is not a class of transformers"):
        load_sparse(tmp_path)


def rewritten(path: Path, change: Any) -> None:
    """The same file with layout and tensors changed, and a header that is right again."""
    with safe_open(path, framework="pt") as file:
        layout = json.loads(file.metadata()["layout"])
    tensors = load_file(path)
    change(tensors, layout)
    save_file(tensors, path, metadata={"sparse_format": "hf_efficient.sparse.1", "layout": json.dumps(layout)})


HOSTILE = {
    "a bit more": lambda t, l: t["weight:gaps"].__setitem__(0, t["weight:gaps"][0] ^ 1),
    "a value less": lambda t, l: t.update({"weight:values": t["weight:values"][:-1].clone()}),
    "another value": lambda t, l: t["weight:values"].__setitem__(0, 7.0),
    "huge shape": lambda t, l: l["weight"].update(shape=[2**39, 2**39]),
    "negative shape": lambda t, l: l["weight"].update(shape=[-4, -8]),
    "shape of strings": lambda t, l: l["weight"].update(shape="48"),
    "no shape": lambda t, l: l["weight"].pop("shape"),
    "a function for a dtype": lambda t, l: l["weight"].update(dtype="load"),
    "another dtype": lambda t, l: l["weight"].update(dtype="float16"),
    "another form": lambda t, l: l["weight"].update(form="bitmap"),
    "no known form": lambda t, l: l["weight"].update(form="pickle"),
    "tensor gone": lambda t, l: t.pop("weight:values"),
    "tensor more": lambda t, l: t.update({"extra": torch.zeros(3)}),
    "layout is a list": lambda t, l: l.update(weight=[1, 2]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(change: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 32)
    model.weight.data.mul_(torch.rand(32, 64) < 0.1)
    path = save_sparse(model, tmp_path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=r"is damaged|the model's has \(32, 64\)"):
        load_sparse(tmp_path, nn.Linear(64, 32))


def bomb(path: Path, shape: list[int]) -> Path:
    """A file of a few hundred bytes that says: so many zeros."""
    empty = {"weight:gaps": torch.zeros(0, dtype=torch.uint8), "weight:values": torch.zeros(0)}
    entry = {"dtype": "float32", "shape": shape, "crc": 0, "form": "gaps"}
    layout = json.dumps({"weight": entry})
    save_file(empty, path, metadata={"sparse_format": "hf_efficient.sparse.1", "layout": layout})
    return path


def test_no_file_makes_more_than_the_model_or_its_own_length_allows(tmp_path: Path) -> None:
    path = bomb(tmp_path / FILE_NAME, [2**36])
    with limited_memory(2**30):  # it would take 64 GiB
        with pytest.raises(ValueError, match=r"'weight' has shape \(68719476736,\), the model's has \(4, 8\)"):
            load_sparse(path, nn.Linear(8, 4, bias=False))
        with pytest.raises(ValueError, match=r"claims 68719476736 numbers in \d+ bytes"):
            read_sparse(path)
        for change in (
            {"hidden_size": 2**25},
            {"num_hidden_layers": 10**9},
            {"depths": [2, 10**9]},
            {"vocab_size": "many"},
        ):
            save_sparse(sparse_llama(), tmp_path / "model")
            config = tmp_path / "model" / "config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
            with pytest.raises(ValueError, match=r"the model's has|out of range|cannot be used"):
                load_sparse(tmp_path / "model")
    config.write_text(json.dumps({**json.loads(config.read_text()), "depths": 2, "vocab_size": 64,
                                  "label2id": {"city block": 5000}, "id2label": {"5000": "city block"}}))  # fmt: skip
    load_sparse(tmp_path / "model")  # words of labels are no numbers of layers
    zeros = nn.Linear(2000, 500)
    nn.init.zeros_(zeros.weight)  # an honest model may be nothing but zeros
    assert torch.equal(load_sparse(save_sparse(zeros, tmp_path / "z"), nn.Linear(2000, 500)).weight, zeros.weight)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16, torch.bool])
def test_dtypes_that_torch_cannot_scatter_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    module, again = nn.Module(), nn.Module()
    module.register_buffer("w", (torch.arange(400) % 40 == 3).to(dtype))
    again.register_buffer("w", torch.zeros(400).to(dtype))
    save_sparse(module, tmp_path)
    assert torch.equal(load_sparse(tmp_path, again).w.view(torch.uint8), module.w.view(torch.uint8))


@pytest.mark.parametrize("name", ["w:values", "w:bitmap", "w:gaps", "__metadata__"])
def test_names_of_the_files_own_are_refused(name: str, tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("w", torch.arange(400) % 40 == 3)
    module.register_buffer(name, torch.ones(50, dtype=torch.uint8))
    with pytest.raises(ValueError, match="reserved for the file format"):
        save_sparse(module, tmp_path)
    assert not list(tmp_path.iterdir())


def test_wrapped_models_are_saved_as_what_is_inside(tmp_path: Path) -> None:
    model = sparse_llama()
    for name, wrapped in (("compiled", torch.compile(model)), ("parallel", nn.DataParallel(model))):
        save_sparse(wrapped, tmp_path / name)
        assert torch.equal(logits(load_sparse(tmp_path / name)), logits(model))
    assert model.config.architectures == ["LlamaForCausalLM"]


@BY_TRANSFORMERS
def test_adapters_inside_are_refused(tmp_path: Path) -> None:
    model = llama()
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="merge the adapter first"):
        save_sparse(model, tmp_path)


def test_weights_that_are_not_loaded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'weight' is not loaded \(device 'meta'\)"):
        save_sparse(nn.Linear(4, 4, device="meta"), tmp_path)
    save_sparse(nn.Linear(4, 4), tmp_path)
    with pytest.raises(ValueError, match="The model is on the device 'meta'"):
        load_sparse(tmp_path, nn.Linear(4, 4, device="meta"))
