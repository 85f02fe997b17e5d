"""What cannot be sparse is refused at once, by name."""

from typing import Any

import pytest
import torch
from peft import (
    get_peft_model,
)
from torch import nn

from hf_efficient import BiDSTConfig
from hf_efficient.methods import SPARSITY
from tests.sparsity.models import DELTA, config_of, llama


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 .*\[0, 1\)"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": "0.9"}, "sparsity='0.9'"),
        ({"target": "base"}, "target='base' .*'weight', 'delta'"),
        ({"topology": "random"}, "topology='random'.*'rigl'"),
        ({"distribution": "even"}, "distribution='even'"),
        ({"update_interval": 0}, "update_interval=0 .*>= 1"),
        ({"drop_fraction": 1.5}, "drop_fraction=1.5"),
        ({"stop_fraction": -1}, "stop_fraction=-1"),
        ({"init": "zeros"}, "init='zeros'"),
        ({"init_steps": 0}, "init_steps=0"),
        ({"candidates": 0}, "candidates=0"),
        ({"levelling": -1}, "levelling=-1"),
        ({"levelling": 30.0}, r"levelling=30.0 is out of range; expected a number from 0 \(none\) to 1"),
        ({"grow_from": "one"}, "grow_from='one' is not known"),
        ({"initial_sparsity": 1}, "initial_sparsity=1 is out of range"),
        ({"initial_sparsity": 0.95}, "initial_sparsity=0.95 is not below sparsity=0.95"),
        ({"initial_sparsity": 0.5, "topology": "gmp", "pattern": "2:4"}, "initial_sparsity=0.5 is not below"),
        ({"distribution": "as_pruned", "initial_sparsity": 0.5}, "and initial_sparsity=0.5 does not"),
        ({"score_interval": 2.5}, "score_interval=2.5"),
        ({"backend": "cuda"}, "backend='cuda'"),
        ({"distribution": "nonzero"}, "distribution='nonzero' is called 'as_pruned'"),
        ({"distribution": "as_pruned", "target": "delta"}, "distribution='as_pruned'"),
        ({"layers_pattern": "layers"}, "layers_to_transform"),
    ],
)
def test_wrong_fields_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiDSTConfig(**settings)


def test_a_layer_without_an_active_weight_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"sparsity=0.9999 .*q_proj.*exclude_modules"):
        get_peft_model(llama(), config_of(DELTA, sparsity=0.9999, distribution="uniform"))


def test_as_pruned_wants_a_pruned_model_and_a_weight_in_each_layer() -> None:
    config = BiDSTConfig(distribution="as_pruned")
    model = llama()
    with pytest.raises(
        ValueError, match=r"0\.00% of the 15360 targeted weights are zero, expected at least 1%.*prune_"
    ):
        get_peft_model(model, config)
    model.model.layers[0].mlp.up_proj.weight.data.zero_()
    with pytest.raises(ValueError, match=r"All weights of '.*up_proj' are zero.*exclude_modules"):
        get_peft_model(model, config)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (["nothing_like_it"], ValueError, "nothing_like_it"),
        (r".*\.mlp\.act_fn", TypeError, "mlp.act_fn.*SiLU.*expected Linear"),
        (["input_layernorm"], TypeError, "input_layernorm.*LlamaRMSNorm"),
    ],
)
def test_targets_that_cannot_be_are_refused_by_name(targets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get_peft_model(llama(), config_of(DELTA, target_modules=targets))


def test_attention_that_reads_weights_behind_the_layers_back_is_refused() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    with pytest.raises(TypeError, match=r"0.out_proj.*exclude_modules=\['out_proj'\]"):
        get_peft_model(model, BiDSTConfig(target="delta", sparsity=0.5, target_modules=["0.out_proj"]))


def test_quantized_layers_cannot_become_sparse() -> None:
    class Linear4bit(nn.Linear):
        pass

    model = nn.Sequential(Linear4bit(8, 8))
    model[0].weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'0', whose weight is quantized.*target='delta'"):
        get_peft_model(model, BiDSTConfig(sparsity=0.5, target_modules=["0"]))


def test_names_that_peft_would_confuse_are_refused() -> None:
    model = nn.ModuleDict({"a_norm_x": nn.Linear(8, 8), "x": nn.LayerNorm(8)})
    with pytest.raises(ValueError, match=r"'x'.*'a_norm_x'.*train_others=False"):
        get_peft_model(model, BiDSTConfig(sparsity=0.5, target_modules=["a_norm_x"]))


def test_mixed_adapters_are_refused_by_peft() -> None:
    with pytest.raises(ValueError, match="PeftMixedModel"):
        get_peft_model(llama(), config_of(DELTA), mixed=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topology": "rigl", "candidates": 1}, r"candidates=1 is not read by topology='rigl', only by 'bidst'\."),
        ({"topology": "set", "levelling": 1}, "levelling=1 is not read by topology='set', only by 'bidst', 'rigl'"),
        ({"topology": "rigl", "grow_from": "start", "init": "random"}, "grow_from='start' is read only with"),
        ({"topology": "rigl", "grow_from": "start", "target": "delta"}, "grow_from='start' is read only with"),
        ({"grow_from": "start"}, "only by 'rigl', 'set', 'mest'"),
        ({"initial_sparsity": 0.1, "pattern": "2:4"}, "initial_sparsity=0.1 is read only with pattern=None"),
        ({"topology": "static", "initial_sparsity": 0.1}, "initial_sparsity=0.1 is not read"),
        ({"topology": "set", "candidates": 2.0}, "candidates=2.0 is not read"),
        ({"topology": "mest", "score_interval": 2}, "score_interval=2 is not read"),
        ({"topology": "gmp", "levelling": 1.0}, "levelling=1.0 is not read"),
        ({"topology": "gmp", "drop_fraction": 0.1}, "only by 'bidst', 'rigl', 'set', 'mest'"),
        ({"topology": "gmp", "init": "random"}, "init='random' is not read by topology='gmp'"),
        ({"topology": "static", "update_interval": 10}, "only by 'bidst', 'rigl', 'set', 'mest', 'gmp'"),
        ({"topology": "static", "stop_fraction": 0.5}, "stop_fraction=0.5 is not read"),
        ({"init_steps": 3}, "init_steps=3 is read only with init='gradient' or 'snip'"),
        ({"init_steps": 3, "init": "random", "target": "delta"}, "init_steps=3 is read only with"),
        ({"distribution": "as_pruned", "sparsity": 0.5}, "sparsity=0.5 is read only with another distribution"),
        ({"distribution": "as_pruned", "init": "gradient"}, "init='gradient' is read only with another distribution"),
        ({"distribution": "global", "topology": "static", "init": "random"}, "distribution='global' is read only with"),
    ],
)
def test_a_setting_that_is_not_read_is_refused_and_its_readers_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiDSTConfig(**settings)


def test_settings_that_are_read_are_taken() -> None:
    """Also those of an adapter that was saved by an earlier version."""
    BiDSTConfig(topology="gmp", update_interval=10, stop_fraction=0.5)
    BiDSTConfig(target="delta", init_steps=3)
    BiDSTConfig(topology="static", init="snip", init_steps=3, distribution="global")
    BiDSTConfig(topology="static", update_interval=10, counts={"fc": 3})
    assert SPARSITY.names == ("bidst", "rigl", "set", "mest", "gmp", "static")


class Shares(nn.Module):
    """Two names of one layer, or two layers of one weight."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        if layer:
            self.second = self.first
        else:
            self.second.weight = self.first.weight


@pytest.mark.parametrize("model", [Shares(True), Shares(False)])
@pytest.mark.parametrize("targets", [["first"], ["second"], ["first", "second"]])
def test_a_weight_that_is_another_layers_as_well_is_refused(model: nn.Module, targets: list[str]) -> None:
    with pytest.raises(ValueError, match=r"is shared: it is 'first\.weight' and 'second\.weight'|{'second'} not found"):
        get_peft_model(model, BiDSTConfig(sparsity=0.5, target_modules=targets, train_others=False))


def test_an_adapter_saved_with_the_former_name_of_its_distribution_loads() -> None:
    config = BiDSTConfig(distribution="nonzero", topology="static", counts={"q_proj": 3})
    assert config.distribution == "as_pruned"
