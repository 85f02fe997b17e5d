"""One shape of face: what every public name says of itself, and how configurations travel."""

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import HfArgumentParser, Trainer, TrainingArguments

import hf_efficient
from hf_efficient import (
    BiDSTConfig,
    EfficiencyPlan,
    FitSettings,
    PruningConfig,
    SAMArguments,
    STDOConfig,
    TokenPrunerConfig,
)
from hf_efficient.budget.planner.found import Candidate
from tests.optimization.training.trainers import bert, rows
from tests.tiny import stock

PUBLIC = [name for name in hf_efficient.__all__ if name != "__version__"]
OPTIMIZERS = ("ASAM", "MSAM", "S2SAM", "SAM", "ZOSAM", "LookSAM")
TRAINERS = ("SAMTrainer", "S2SAMTrainer", "ZOSAMTrainer", "BiDSTTrainer", "EfficientTrainer")
OF_TRAINERS: dict[str, Any] = {
    "BiDSTTrainer": {"sparsity_config": BiDSTConfig(sparsity=0.5)},
    "EfficientTrainer": {"plan": EfficiencyPlan(sam=SAMArguments("s2sam"))},
}
CONFIGS: dict[str, Any] = {
    "TokenPrunerConfig": TokenPrunerConfig("itg", budget=64),
    "SAMArguments": SAMArguments("zosam", rho=0.1, guided=True),
    "FitSettings": FitSettings(method="stdo", num_chunks=3),
    "STDOConfig": STDOConfig(num_features=8),
    "BiDSTConfig": BiDSTConfig(sparsity=0.8, topology="rigl"),
    "PruningConfig": PruningConfig("wanda", 0.6),
    "EfficiencyPlan": EfficiencyPlan(token_pruner=TokenPrunerConfig("itg", budget=64), sam=SAMArguments("s2sam")),
}


def documented(thing: Any) -> list[str]:
    """The parameters that its docstring has to explain: its own ones, not those of the library's class below it."""
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        return [name for name in inspect.get_annotations(thing) if not name.startswith("_")]
    signature = inspect.signature(thing)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in signature.parameters.values() if not p.name.startswith("_") and p.kind not in kinds]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_what_it_takes_and_returns(name: str) -> None:
    thing = getattr(hf_efficient, name)
    text = inspect.getdoc(thing) or ""
    assert len(text) > 40
    if issubclass(thing, nn.Module) if inspect.isclass(thing) else False:
        return  # made by from_pretrained or get_peft_model
    missing = [parameter for parameter in documented(thing) if f"{parameter}" not in text]
    assert not missing or "as for `" in text or "as of `" in text, missing
    if not inspect.isclass(thing):
        returned = inspect.signature(thing).return_annotation
        says = ("Returns:", "Yields", "eturns", "as of `", "the first-order")
        assert returned in (None, "None", "Iterator[None]") or any(word in text for word in says)


def made(name: str, folder: Path) -> Any:
    """A public thing, as small as it can be."""
    thing: Any = getattr(hf_efficient, name)
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
    if name in OPTIMIZERS:
        return thing([nn.Parameter(torch.zeros(1000))], torch.optim.SGD, lr=0.1, momentum=0.9)
    if name in TRAINERS:
        return thing(bert(), arguments, train_dataset=rows(4), **OF_TRAINERS.get(name, {}))
    if name == "SAMTrainerMixin":
        return type("Mine", (thing, Trainer), {})(bert(), arguments, train_dataset=rows(4))
    if name == "ReducedTokens":
        return hf_efficient.reduce_tokens(torch.randn(2, 100, 16), TokenPrunerConfig("itg", budget=7))
    if name == "SparsityCallback":
        return thing()
    if name == "BudgetReport":
        return hf_efficient.measure(nn.Linear(2, 2), torch.ones(1, 2), repeats=1)
    if name == "LimitError":
        return thing("too much", {"file_bytes": 3.0})
    if name == "FoundPlan":
        nothing = Candidate("stock", EfficiencyPlan(), 1.0, {}, {"file_bytes": 3.0})
        return thing(nothing, {"file_bytes": 4.0}, nothing, [])
    if name == "STDOModel":
        return thing(STDOConfig())
    if name == "STDOPipeline":
        return thing(hf_efficient.STDOModel(STDOConfig()))
    if name == "BiDSTModel":
        return hf_efficient.BiDSTTrainer(bert(), arguments, sparsity_config=BiDSTConfig(sparsity=0.5)).model
    return CONFIGS[name]


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isclass(getattr(hf_efficient, name))])
def test_a_public_object_prints_what_it_is(name: str, tmp_path: Path) -> None:
    text = repr(made(name, tmp_path))
    assert " object at 0x" not in text
    assert "tensor(" not in text
    if name != "SAMTrainerMixin":
        assert name.removesuffix("Model") in text


def test_an_attached_pair_prints_its_pruner() -> None:
    model, processor = stock("llava")
    hf_efficient.attach_token_pruner(model, processor, TokenPrunerConfig("itg", budget=4))
    assert "token_pruner=TokenPruner(itg, budget=4" in repr(model)
    assert "token_pruner=PlaceholderPruner(itg, budget=4)" in repr(processor)
    hf_efficient.detach_token_pruner(model, processor)
    assert "token_pruner" not in repr(model) + repr(processor)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_prints_its_method_distance_and_base(name: str, tmp_path: Path) -> None:
    text = repr(made(name, tmp_path))
    assert text.startswith(f"{name}(SGD")
    assert "rho=0.05" in text
    assert "lr: 0.1" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_survives_dict_and_json(name: str) -> None:
    config = CONFIGS[name]
    build: Callable[[dict[str, Any]], Any] = getattr(type(config), "from_dict", lambda values: type(config)(**values))
    values = config.to_dict()
    assert build(dict(values)).to_dict() == values
    if name != "BiDSTConfig":  # PEFT's has save_pretrained alone
        assert build(json.loads(config.to_json_string())).to_dict() == values


@pytest.mark.parametrize("name", ["TokenPrunerConfig", "BiDSTConfig", "STDOConfig"])
def test_a_configuration_of_a_saved_model_survives_its_file(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    config.save_pretrained(str(tmp_path))
    assert (
        type(config).from_pretrained(str(tmp_path)).to_dict().items()
        >= {k: v for k, v in config.to_dict().items() if v is not None}.items()
    )
    assert callable(config.push_to_hub)


@pytest.mark.parametrize("name", ["TokenPrunerConfig", "SAMArguments"])  # FitSettings: `hf-efficient stdo encode`
def test_settings_survive_the_command_line(name: str) -> None:
    config, default = CONFIGS[name], type(CONFIGS[name])()
    given = [
        word
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(default, field.name)
        for word in (f"--{field.name}", str(getattr(config, field.name)))
    ]
    (parsed,) = HfArgumentParser(type(config)).parse_args_into_dataclasses(given)
    assert parsed == config
