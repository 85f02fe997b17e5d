"""Old sparse-bitmask checkpoints become plain ones, and hostile ones an error that names them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from hf_efficient import convert_bitmask, keep_sparsity
from tests.fuzzing import limited_memory
from tests.sparsity.models import llama, logits
from tests.sparsity.pruned.models import pruned


def compressed(name: str, weight: Tensor, two_of_four: bool = False) -> dict[str, Tensor]:
    """As compressed-tensors 0.8 to 0.14 stored a weight: written with numpy, as it was."""
    mask = weight != 0
    bits = np.packbits(mask.numpy(), axis=-1, bitorder="little")
    counts = mask.sum(-1)
    prefix = name.removesuffix(".weight")
    parts = {f"{prefix}.bitmask": torch.from_numpy(bits), f"{prefix}.compressed": weight[mask]}
    if two_of_four:
        parts[f"{prefix}.compressed"] = weight[mask].reshape(len(weight), -1)
        return parts | {f"{prefix}.shape": torch.tensor(weight.shape).reshape(-1, 1)}
    return parts | {
        f"{prefix}.shape": torch.tensor(weight.shape),
        f"{prefix}.row_offsets": counts.cumsum(0) - counts,
    }


def checkpoint(folder: Path, two_of_four: bool = False, shards: int = 1) -> Any:
    """A pruned Llama in the old format; the model itself is returned."""
    model = pruned(llama())
    if two_of_four:
        with torch.no_grad():
            for layer in model.model.layers.modules():
                if isinstance(layer, torch.nn.Linear):
                    keep = torch.rand(layer.weight.numel() // 4, 4).topk(2).indices
                    mask = torch.zeros(len(keep), 4).scatter_(1, keep, 1.0)
                    layer.weight.copy_((torch.randn_like(layer.weight) + 3) * mask.view(layer.weight.shape))
    model.save_pretrained(folder)
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= compressed(name, tensor, two_of_four) if "_proj" in name else {name: tensor}
    names = sorted(tensors)
    kind = "sparse-24-bitmask" if two_of_four else "sparse-bitmask"
    edit(folder, quantization_config={"quant_method": "compressed-tensors", "sparsity_config": {"format": kind}})
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return model
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}  # parts of a weight apart
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return model


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(("two_of_four", "shards"), [(False, 1), (False, 3), (True, 1)])
def test_a_compressed_model_becomes_a_plain_one_bit_for_bit(two_of_four: bool, shards: int, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "old", two_of_four, shards)
    (tmp_path / "old" / "tokenizer.json").write_text("{}")
    (tmp_path / "old" / "modeling.py").write_text("raise SystemExit")
    found = convert_bitmask(tmp_path / "old", tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(found)
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name
    assert torch.equal(logits(again), logits(model))
    assert (found / "tokenizer.json").exists()
    assert not (found / "modeling.py").exists()
    assert "quantization_config" not in json.loads((found / "config.json").read_text())
    assert keep_sparsity(again).sparsity == pytest.approx(0.5, abs=0.05)


def test_the_oldest_names_and_place_of_the_config(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "old")
    path = tmp_path / "old" / "model.safetensors"
    parts = (".bitmask", ".compressed", ".shape", ".row_offsets")
    tensors = {
        name.replace("_proj.", "_proj.weight.") if name.endswith(parts) else name: tensor
        for name, tensor in load_file(path).items()
    }
    tensors |= {
        name.replace("model.norm", "model.norm.weight"): tensor
        for name, tensor in compressed("model.norm.weight", tensors.pop("model.norm.weight")).items()
    }
    save_file(tensors, path)
    edit(tmp_path / "old", quantization_config=None, sparsity_config={"format": "sparse-bitmask"})
    again = AutoModelForCausalLM.from_pretrained(convert_bitmask(tmp_path / "old", tmp_path / "plain"))
    assert torch.equal(logits(again), logits(model))


Q = "model.layers.0.self_attn.q_proj"
DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "bit more": (lambda t: t[f"{Q}.bitmask"].fill_(255), "values for 1024 set bits"),
    "value less": (lambda t: t.update({f"{Q}.compressed": t[f"{Q}.compressed"][1:]}), "values for"),
    "huge shape": (lambda t: t.update({f"{Q}.shape": torch.tensor([2**39, 2**20])}), r"expected \(549755813888"),
    "negative": (lambda t: t.update({f"{Q}.shape": torch.tensor([-1, 32])}), r"shape=\[-1, 32\] is out of range"),
    "no shape": (lambda t: t.pop(f"{Q}.shape"), r"q_proj\.shape' is missing"),
    "long shape": (lambda t: t.update({f"{Q}.shape": torch.ones(9).long()}), "at most 8 numbers"),
    "no bitmask": (lambda t: t.pop(f"{Q}.bitmask"), "has no bitmask beside it"),
    "codes": (lambda t: t.update({f"{Q}.compressed": t[f"{Q}.compressed"].char()}), "Quantized weights are not read"),
    "offsets": (lambda t: t[f"{Q}.row_offsets"].add_(1), "row_offsets do not count"),
    "twice": (lambda t: t.update({f"{Q}.weight": torch.ones(2)}), "stored plain and as a bitmask"),
    "twice compressed": (
        lambda t: t.update({f"{Q}.weight.{p}": t[f"{Q}.{p}"].clone() for p in ("shape", "bitmask", "compressed")}),
        "is stored twice",
    ),
    "narrow": (
        lambda t: t.update({f"{Q}.shape": torch.tensor([32, 31])}), "after the last entry of a row|values for",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_and_hostile_weights_are_named(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    checkpoint(tmp_path / "old")
    path = tmp_path / "old" / "model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with limited_memory(2**28), pytest.raises(ValueError, match=message) as told:
        convert_bitmask(tmp_path / "old", tmp_path / "plain")
    assert "model.safetensors" in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "plain").exists()


def test_other_formats_and_places_are_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / "old")
    folder, output = tmp_path / "old", tmp_path / "plain"
    for config, message in (
        ({"sparsity_config": {"format": "dense"}}, "format of sparsity is 'dense', expected one of 'sparse-bitmask'"),
        (None, "format of sparsity is None"),
        ("x", "quantization_config: expected an object"),
        ({"config_groups": {"a": 1}, "sparsity_config": {"format": "sparse-bitmask"}}, "quantized as well"),
    ):
        edit(folder, quantization_config=config)
        with pytest.raises(ValueError, match=message):
            convert_bitmask(folder, output)
    edit(folder, quantization_config={"sparsity_config": {"format": "sparse-bitmask"}})
    pruned(llama()).save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(ValueError, match="but no weight is stored so"):
        convert_bitmask(folder, output)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../../secret.safetensors"}}')
    with pytest.raises(ValueError, match=r"'\.\./\.\./secret\.safetensors' is not the name of a file"):
        convert_bitmask(folder, output)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}')
    with pytest.raises(FileNotFoundError, match=r"No gone\.safetensors"):
        convert_bitmask(folder, output)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        convert_bitmask(tmp_path / "absent" / "folder", output)
    with pytest.raises(ValueError, match="is the input and cannot be the output"):
        convert_bitmask(folder, folder)
