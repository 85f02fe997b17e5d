"""Which layers become sparse: exactly those that the settings say, and what is left out is said."""

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hf_efficient import BiDSTConfig
from hf_efficient.sparsity.tuner.targets import stays_dense
from tests.sparsity.models import layers, llama


class Headed(nn.Module):
    """Names of layers that are the end of others' names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.body = nn.ModuleDict({"fc2": nn.Linear(8, 8), "multihead": nn.Linear(8, 8)})
        self.head = nn.ModuleDict({"fc": nn.Linear(8, 8), "fc2": nn.Linear(8, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body["multihead"](torch.relu(self.body["fc2"](self.norm(torch.relu(self.fc(x))))))
        out: torch.Tensor = self.head["fc2"](torch.relu(self.head["fc"](x)))
        return out


def names(model: nn.Module) -> set[str]:
    return {name.removeprefix("base_model.model.") for name in layers(model)}


def names_of_lora(model: nn.Module) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}


def test_default_targets_are_whole_names(tmp_path: Any) -> None:
    """A layer "fc" at the top takes no "head.fc" with it, neither when made nor when loaded."""
    model = get_peft_model(Headed(), BiDSTConfig(sparsity=0.5))
    assert names(model) == {"fc", "body.fc2", "body.multihead"}
    assert not model.base_model.model.head["fc"].modules_to_save["default"].weight.eq(0).any()
    x = torch.randn(3, 8)
    expected = model.eval()(x)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(Headed(), str(tmp_path)).eval()
    assert names(loaded) == names(model)
    assert torch.equal(loaded(x), expected)


def test_all_linear_and_exclusions_are_whole_names() -> None:
    net = nn.Sequential()
    net.add_module("fc", nn.Linear(8, 8))
    net.add_module("head", nn.Sequential())
    net.head.add_module("fc", nn.Conv1d(8, 8, 1))  # no linear layer, but with such a name
    model = get_peft_model(net, BiDSTConfig(target="delta", init="random", target_modules="all-linear", sparsity=0.5))
    assert names(model) == {"fc"}
    settings = {"target": "delta", "init": "random", "sparsity": 0.5, "target_modules": ["fc", "fc2"]}
    lora = get_peft_model(Headed(), LoraConfig(target_modules=["fc", "fc2"], exclude_modules=["head.fc"]))
    model = get_peft_model(Headed(), BiDSTConfig(**settings, exclude_modules=["head.fc"]))
    assert names(model) == {
        n.removeprefix("base_model.model.") for n, m in lora.named_modules() if hasattr(m, "lora_A")
    }


def test_words_of_a_name_say_what_stays_dense() -> None:
    dense = ("lm_head", "model.embed_tokens", "classifier", "pre_classifier", "score", "attn.q_norm", "pooler.dense")
    dense += ("vision.patch_embedding.proj", "heads.0", "word_embeddings", "final_layernorm", "ClassificationHead.fc")
    assert all(stays_dense(name) for name in dense)
    sparse = ("model.layers.0.mlp.up_proj", "multihead_attn.q", "ahead.fc", "underscored.fc", "normal.fc", "header.fc")
    assert not any(stays_dense(name) for name in sparse)


@pytest.mark.parametrize("target", ["weight", "delta"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["layers"]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0.*"},
        {"target_modules": r".*\.1\..*q_proj"},
        {"target_modules": ["q_proj", "mlp.down_proj"], "modules_to_save": ["down_proj"]},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
        {"target_modules": None, "layers_to_transform": [1]},
    ],
)
def test_settings_of_peft_choose_what_they_choose_for_lora(settings: dict[str, Any], target: str) -> None:
    config = BiDSTConfig(target=target, init="random", sparsity=0.8, train_others=False, **settings)
    model = get_peft_model(llama(), config)
    if settings["target_modules"] is None and target == "weight":  # all linear layers, and then the blocks as for LoRA
        settings = {**settings, "target_modules": [f"{n}_proj" for n in ("q", "k", "v", "o", "up", "gate", "down")]}
    assert names(model) == names_of_lora(get_peft_model(llama(), LoraConfig(**settings)))


@pytest.mark.parametrize("target", ["weight", "delta"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear", "layers_to_transform": [0]},
        {"target_modules": ".*q_proj", "layers_to_transform": [0]},
        {"target_modules": ["q_proj"], "layers_pattern": ["layers"]},
        {"target_modules": ["q_proj"], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [99]},
        {"target_modules": ["nothing"]},
    ],
)
def test_what_lora_refuses_is_refused(settings: dict[str, Any], target: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  its words are LoRA's
        get_peft_model(llama(), LoraConfig(**settings))
    with pytest.raises(ValueError, match=r"layers|[Tt]arget modules"):
        get_peft_model(llama(), BiDSTConfig(target=target, init="random", sparsity=0.8, **settings))


def test_blocks_without_target_modules_survive_saving(tmp_path: Any) -> None:
    model = get_peft_model(llama(), BiDSTConfig(sparsity=0.8, layers_to_transform=[0]))
    assert len(names(model)) == 7
    assert all(".layers.0." in name for name in names(model))
    model.save_pretrained(str(tmp_path))
    assert names(PeftModel.from_pretrained(llama(), str(tmp_path))) == names(model)
    with pytest.raises(ValueError, match="found no linear"):
        get_peft_model(llama(), BiDSTConfig(sparsity=0.8, layers_to_transform=[7]))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(48, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix.T


class Unnamed(nn.Module):
    """Three quarters of its weights are in no layer that could be sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Product()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(self.fc(x))
        return out


def test_weights_that_are_left_out_are_named_with_their_share() -> None:
    with pytest.warns(UserWarning, match=r"leaves out 7\d% of the model's weights.*'inner'.*cannot be made sparse"):
        get_peft_model(Unnamed(), BiDSTConfig(sparsity=0.5))
    with pytest.warns(UserWarning, match=r"target_modules='all-linear' leaves out 7\d%"):
        get_peft_model(Unnamed(), BiDSTConfig(target="delta", init="random", target_modules="all-linear"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        get_peft_model(llama(), BiDSTConfig(sparsity=0.8))  # embeddings and head are meant to stay
        get_peft_model(Unnamed(), BiDSTConfig(sparsity=0.5, target_modules=["fc"]))  # said by whom it concerns


def test_a_module_to_save_whose_name_is_part_of_a_sparse_layers_is_refused() -> None:
    """PEFT would take "body.norm.fc" for a part of "norm", and leave it dense without a word."""
    net = nn.Sequential()
    net.add_module("norm", nn.LayerNorm(8))
    net.add_module("body", nn.Sequential())
    net.body.add_module("norm", nn.Sequential())
    net.body.norm.add_module("fc", nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"train_others wants to save 'norm'.*'body.norm.fc'"):
        get_peft_model(net, BiDSTConfig(sparsity=0.5, target_modules=["fc"]))
    assert names(get_peft_model(net, BiDSTConfig(sparsity=0.5, target_modules=["fc"], train_others=False)))
