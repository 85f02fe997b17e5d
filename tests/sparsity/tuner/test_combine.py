"""Deltas that become one, against the same rules on dense matrices; hot-swap; conversion to LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_efficient import BiDSTConfig, train_sparsely
from hf_efficient.sparsity.tuner.combine import KINDS, Recipe
from tests.sparsity.models import DELTA, IDS, WEIGHT, config_of, disturb, gpt2, layers, llama, logits
from tests.sparsity.tuner.test_experts import adapted as with_experts


def three(density: float = 1.0) -> PeftModel:
    """Deltas "default", "second" (other layers, denser) and "third"."""
    model = get_peft_model(llama(), config_of(DELTA, init="random"))
    model.add_adapter("second", config_of(DELTA, init="random", sparsity=0.5, target_modules=["q_proj", "up_proj"]))
    model.add_adapter("third", config_of(DELTA, init="random", seed=2))
    for name in ("default", "second", "third"):
        disturb(model, name)
    return model


def dense_deltas(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    return {
        name: layer.sparse_weight(adapter).dense().detach()
        if adapter in layer.bidst_weight
        else torch.zeros_like(layer.get_base_weight())
        for name, layer in layers(model).items()
    }


def trimmed(delta: Tensor, density: float) -> Tensor:
    """All but the smallest of a delta's own values, by sorting."""
    flat = delta.flatten()
    count = int(density * int(flat.count_nonzero()))
    kept = flat.abs().argsort(descending=True)[:count]
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(delta)


def merged_by_ties(deltas: list[Tensor], weights: list[float], sign: str) -> Tensor:
    """Entry by entry, as Yadav et al. (NeurIPS 2023) say it: elect a sign, mean of those that have it."""
    out = torch.zeros_like(deltas[0]).flatten()
    for i, values in enumerate(zip(*(d.flatten().tolist() for d in deltas), strict=True)):
        votes = sum(values) if sign == "total" else sum((v > 0) - (v < 0) for v in values)
        chosen = [w * v for w, v in zip(weights, values, strict=True) if v and (v > 0) == (votes >= 0)]
        out[i] = sum(chosen) / len(chosen) if chosen else 0.0
    return out.view_as(deltas[0])


NAMES = ["default", "second", "third"]
WEIGHTS = [0.7, -0.4, 1.5]


@pytest.mark.parametrize(
    ("kind", "density", "sign"),
    [
        ("linear", None, "total"),
        ("magnitude_prune", 0.3, "total"),
        ("ties", 0.5, "total"),
        ("ties", 1.0, "frequency"),
    ],
)
def test_the_combined_delta_is_that_of_the_rule_on_dense_matrices(kind: str, density: float, sign: str) -> None:
    model = three()
    deltas = {name: dense_deltas(model, name) for name in NAMES}
    before = logits(model)
    model.add_weighted_adapter(NAMES, WEIGHTS, "all", kind, density=density, majority_sign_method=sign)
    assert torch.equal(logits(model), before)
    found = dense_deltas(model, "all")
    for name in list(found)[::4]:
        each = [deltas[adapter][name] for adapter in NAMES]
        each = [delta if density is None else trimmed(delta, density) for delta in each]
        if kind == "ties":
            truth = merged_by_ties(each, WEIGHTS, sign)
        else:
            truth = sum(w * d for w, d in zip(WEIGHTS, each, strict=True))
        torch.testing.assert_close(found[name], truth)
        support = torch.stack(each).any(0)
        kept = layers(model)[name].sparse_weight("all").mask().view_as(support)
        assert torch.equal(kept, support), "no value is stored that no delta has"


def test_a_sum_is_what_several_active_adapters_compute_and_comes_back_from_files(tmp_path: Path) -> None:
    model = three()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    model.base_model.set_adapter(["default", "second"])
    together = logits(model)
    model.set_adapter("default")
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    model.set_adapter("sum")
    expected = logits(model)
    torch.testing.assert_close(expected, together, atol=1e-5, rtol=1e-4)
    model.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    again = PeftModel.from_pretrained(llama(), str(tmp_path / "sum"))
    assert torch.equal(logits(again), expected)
    assert torch.equal(logits(again.merge_and_unload()), expected)
    model.delete_adapter("sum")
    model.set_adapter("default")
    model.add_weighted_adapter(["third"], [2.0], "sum")  # the name is free again
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if ".sum." in n], lr=0.1)
    model.set_adapter("sum")
    train_sparsely(model, optimizer, 3)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()


def test_dare_keeps_each_value_with_its_chance_and_the_mean() -> None:
    """Yu et al. (ICML 2024): dropped at random, the rest divided by the share that stays."""
    torch.manual_seed(0)
    indices, values = torch.arange(0, 40_000, 2), torch.ones(20_000)
    found, total = Recipe("dare_linear", (2.0,), 0.25).combine([(indices, values)])
    assert total.unique().tolist() == [8.0]
    assert len(found) == pytest.approx(5_000, abs=200)  # 3.3 standard deviations
    assert not bool((found % 2).any())
    found, total = Recipe("dare_ties", (1.0, 1.0), 0.5).combine([(indices, values), (indices, -3 * values)])
    both = {2.0: 0.25, -6.0: 0.5}  # the first alone; the second, alone or against the first
    for value, chance in both.items():
        assert int((total == value).sum()) == pytest.approx(chance * 20_000, abs=250)
    assert len(found) == sum(int((total == value).sum()) for value in both)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_and_conv1d_combine_too(kind: str) -> None:
    for model, more in ((with_experts("qwen", "delta"), {"target_modules": ["experts"]}), (None, {})):
        if model is None:
            model = get_peft_model(gpt2(), config_of(DELTA, init="random", target_modules=["c_fc"]))
            more = {"target_modules": ["c_fc", "c_proj"]}
        model.add_adapter("second", BiDSTConfig(target="delta", init="random", sparsity=0.9, **more))
        disturb(model)
        disturb(model, "second")
        density = None if kind == "linear" else 1.0
        model.add_weighted_adapter(["default", "second"], [1.0, 2.0], "both", kind, density=density)
        truth = {n: d + 2 * dense_deltas(model, "second")[n] for n, d in dense_deltas(model, "default").items()}
        if not kind.endswith("ties"):
            for name, delta in dense_deltas(model, "both").items():
                torch.testing.assert_close(delta, truth[name])
        model.set_adapter("both")
        assert logits(model).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default"], [1.0], "second"), "adapter_name='second' exists already"),
        ((["default", "no"], [1.0, 1.0], "new"), "there is no adapter 'no'; expected some of default, second, third"),
        ((["default"], [1.0, 2.0], "new"), "weights has 2 numbers for 1 adapters"),
        (([], [], "new"), "adapters is empty"),
        ((["default"], ["x"], "new"), "weights="),
        ((["default"], [1.0], "new", "svd"), "combination_type='svd'.*'linear'"),
        ((["default"], [1.0], "new", "ties"), "density=None with combination_type='ties'"),
        ((["default"], [1.0], "new", "linear", 0.5), "density=0.5 with combination_type='linear'"),
        ((["default"], [1.0], "new", "ties", 1.5), "density=1.5 is out of range"),
        ((["default"], [1.0], "new", "ties", 0.5, "mean"), "majority_sign_method='mean'"),
    ],
)
def test_what_cannot_be_combined_is_refused(arguments: Any, message: str) -> None:
    model = three()
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(*arguments)
    assert list(model.peft_config) == NAMES


def test_whole_sparse_models_and_two_heads_are_not_combined() -> None:
    model = get_peft_model(llama(), config_of(WEIGHT, train_others=False))
    with pytest.raises(ValueError, match=r"'default' has target='weight'.*average what they become"):
        model.add_weighted_adapter(["default"], [1.0], "new")
    model = get_peft_model(llama(), config_of(DELTA, init="random", modules_to_save=["lm_head"]))
    model.add_adapter("second", config_of(DELTA, init="random", modules_to_save=["lm_head"]))
    model.add_adapter("third", config_of(DELTA, init="random"))
    with pytest.raises(ValueError, match="'default', 'second' each have trained 'lm_head'"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "new")
    disturb(model)
    model.add_weighted_adapter(["default", "third"], [1.0, 1.0], "new")
    expected = logits(model)
    model.set_adapter("new")
    torch.testing.assert_close(logits(model), expected)  # the third is zero; the head is the first one's


def saved(folder: Path, **more: Any) -> Tensor:
    model = get_peft_model(llama(), config_of(DELTA, init="random", **more))
    disturb(model)
    model.save_pretrained(str(folder))
    return logits(model)


def test_another_adapter_takes_the_place_of_a_loaded_one_in_the_same_tensors(tmp_path: Path) -> None:
    first = saved(tmp_path / "first")
    second = saved(tmp_path / "second", seed=5)
    fewer = saved(tmp_path / "fewer", seed=6, target_modules=["q_proj"])
    denser = saved(tmp_path / "denser", sparsity=0.5)
    model = PeftModel.from_pretrained(llama(), str(tmp_path / "first"))
    assert torch.equal(logits(model), first)
    tensors = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    model.hotswap_adapter(str(tmp_path / "second"))
    assert torch.equal(logits(model), second)
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == tensors
    for folder, truth in (("fewer", fewer), ("denser", denser), ("first", first)):
        model.hotswap_adapter(str(tmp_path / folder), "default")
        torch.testing.assert_close(logits(model), truth)
    model.save_pretrained(str(tmp_path / "again"))
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), str(tmp_path / "again"))), first)


def test_what_cannot_be_swapped_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    saved(tmp_path / "all")
    saved(tmp_path / "few", target_modules=["q_proj"])
    saved(tmp_path / "head", modules_to_save=["lm_head"])
    get_peft_model(llama(), config_of(WEIGHT)).save_pretrained(str(tmp_path / "weight"))
    model = PeftModel.from_pretrained(llama(), str(tmp_path / "few"), is_trainable=True)
    expected = logits(model)
    for folder, message in (
        ("all", r"has deltas for 'model.*\d+ more.*load_adapter\(folder, 'default'\)"),
        ("weight", "target='delta' and the new one target='weight'"),
        ("head", r"\['lm_head'\] \(modules_to_save\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.hotswap_adapter(str(tmp_path / folder))
    with pytest.raises(ValueError, match="There is no adapter 'no'"):
        model.hotswap_adapter(str(tmp_path / "few"), "no")
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged.*unmerge_adapter"):
        model.hotswap_adapter(str(tmp_path / "few"))
    model.unmerge_adapter()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    training = train_sparsely(model, optimizer, 200)
    with pytest.raises(ValueError, match="being trained"):
        model.hotswap_adapter(str(tmp_path / "few"))
    training.detach()
    assert torch.equal(logits(model), expected)


def test_a_damaged_file_is_not_swapped_in(tmp_path: Path) -> None:
    saved(tmp_path / "first")
    saved(tmp_path / "second", seed=5)
    weights = tmp_path / "second" / "adapter_model.safetensors"
    tensors = load_file(weights)
    next(tensor for name, tensor in tensors.items() if name.endswith("values"))[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    model = PeftModel.from_pretrained(llama(), str(tmp_path / "first"))
    expected = logits(model)
    with pytest.raises(ValueError, match="checksum differs"):
        model.hotswap_adapter(str(tmp_path / "second"))
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_delta_becomes_the_best_lora_of_its_rank(make: Any) -> None:
    names = ["q_proj", "up_proj"] if make is llama else ["c_fc", "c_proj"]
    model = get_peft_model(make(), config_of(DELTA, init="random", target_modules=names))
    disturb(model)
    expected = logits(model)
    for rank in (32, 4):
        config, tensors = convert_to_lora(model, rank)
        assert isinstance(config, LoraConfig)
        lora = get_peft_model(make(), config)
        set_peft_model_state_dict(lora, tensors)
        if rank == 32:
            torch.testing.assert_close(logits(lora), expected, atol=1e-4, rtol=1e-3)
        for name, layer in layers(model).items():
            delta = layer.sparse_weight("default").dense().detach()
            rest = torch.linalg.svdvals(delta)[rank:].square().sum()
            found = lora.get_submodule(name).get_delta_weight("default").detach()
            torch.testing.assert_close((found - delta).square().sum(), rest, atol=1e-5, rtol=1e-3)


def test_what_is_no_linear_delta_is_not_converted() -> None:
    for model in (
        get_peft_model(llama(), config_of(WEIGHT, train_others=False)),
        with_experts("qwen", "delta"),
        get_peft_model(
            nn.Sequential(nn.Embedding(8, 4)), BiDSTConfig(target="delta", sparsity=0.5, target_modules=["0"])
        ),
    ):
        with pytest.raises(TypeError, match="do not support LoRA conversion"):
            convert_to_lora(model, 2)


def test_an_adapter_for_each_row_is_refused() -> None:
    model = three()
    with pytest.raises(ValueError, match=r"adapter_names.*set_adapter"):
        model(input_ids=IDS, adapter_names=["default", "third"])
