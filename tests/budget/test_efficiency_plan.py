"""A plan: what it takes, what it refuses, and that it survives its file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig

from hf_efficient import BiDSTConfig, EfficiencyPlan, SAMArguments, TokenPrunerConfig, attach_token_pruner
from hf_efficient.representation.generator import TokenGenerator
from hf_efficient.wrapped import pruner_below
from tests.budget.plans import LAYERS, plan
from tests.sparsity.models import llama
from tests.tiny import stock

FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)


def test_settings_stand_for_configurations() -> None:
    settings: dict[str, Any] = {
        "token_pruner": {"method": "itg", "budget": 64},
        "sparsity": {"sparsity": 0.9, "target": "delta", "target_modules": ["q_proj"]},
        "sam": {"method": "zosam", "rho": 0.1},
        "precision": FOUR_BITS.to_dict(),
    }
    made = EfficiencyPlan(**settings)
    assert made.token_pruner == TokenPrunerConfig("itg", budget=64)
    assert made.sparsity == BiDSTConfig(sparsity=0.9, target="delta", target_modules=["q_proj"])
    assert made.sam == SAMArguments("zosam", rho=0.1)
    assert made.precision is not None
    assert made.precision == EfficiencyPlan(precision=FOUR_BITS).precision
    assert made.precision["bnb_4bit_compute_dtype"] == "bfloat16"
    assert EfficiencyPlan.from_dict(json.loads(made.to_json_string())) == made


def test_a_plan_is_not_changed_by_the_model_that_is_made_of_it() -> None:
    chosen = plan()
    before = chosen.to_dict()
    chosen.apply(*stock("llava"))
    assert chosen.to_dict() == before


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"token_pruner": {"metod": "itg"}}, "metod"),
        ({"token_pruner": {"budget": -1}}, "budget=-1"),
        ({"token_pruner": 5}, "token_pruner=5"),
        ({"token_pruner": {"adaptive": True}}, "adaptive=True cannot be in a plan"),
        ({"sparsity": {"sparsity": 2.0}}, "sparsity=2.0"),
        ({"sparsity": {"sparsty": 0.5}}, "sparsty"),
        ({"sparsity": {"peft_type": "LORA"}}, "peft_type='LORA'"),
        ({"sparsity": {"task_type": "NONE_SUCH"}}, "task type"),
        ({"sam": {"rho": -1}}, "rho=-1"),
        ({"sam": "s2sam"}, "sam='s2sam'"),
        ({"precision": {"quant_method": "gptq"}}, "quant_method='gptq'"),
        ({"precision": {"quant_method": "bitsandbytes"}}, "load_in_4bit"),
        ({"precision": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bits": 4}}, "bits"),
        ({"precision": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "f"}}, "'f'"),
        ({"precision": {"quant_method": "bitsandbytes", "load_in_4bit": 1}}, "boolean"),
        ({"precision": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "x"}}, "x"),
        ({"precision": {"quant_method": "torchao"}}, "quant_type=None"),
        ({"precision": 4}, "precision=4"),
        ({"precision": FOUR_BITS, "sparsity": {"target": "weight"}}, "target='delta'"),
        ({"sam": {"perturb": "merged"}, "sparsity": {}}, "perturb='merged'"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as error:
        EfficiencyPlan(**parts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("full", [False, True])
def test_a_plan_survives_its_file(full: bool, tmp_path: Path) -> None:
    chosen = plan(precision=FOUR_BITS) if full else EfficiencyPlan()
    chosen.save_pretrained(tmp_path / "new")
    assert EfficiencyPlan.from_pretrained(tmp_path / "new") == chosen
    assert EfficiencyPlan.of(tmp_path / "new") == EfficiencyPlan.of(chosen.to_dict()) == EfficiencyPlan.of(chosen)
    with pytest.raises(TypeError, match="plan=3"):
        EfficiencyPlan.of(3)  # type: ignore[arg-type]


def test_a_trained_generator_travels_with_the_plan(tmp_path: Path) -> None:
    generator = TokenGenerator(32, 8)
    chosen = EfficiencyPlan(token_pruner=TokenPrunerConfig("itg", budget=4, generator=generator))
    chosen.save_pretrained(tmp_path)
    back = EfficiencyPlan.from_pretrained(tmp_path).token_pruner
    assert back is not None
    assert back.generator is not None
    wanted = generator.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in back.generator.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "hf_efficient.plan.2"}, "another version"),
        ({"format": None}, "another version"),
        ({"tokens": 4}, "tokens"),
        ({"token_pruner": {"method": "nobody"}}, "nobody"),
        ({"token_pruner": {"method": "itg"}}, "token_pruner_config.json"),
        ({"token_pruner": []}, "token_pruner="),
        ({"files": ["../out"]}, "files="),
        ({"files": "all"}, "files="),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    plan().save_pretrained(tmp_path)
    path = tmp_path / "efficiency_plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=said) as error:
        EfficiencyPlan.from_pretrained(tmp_path)
    assert "efficiency_plan.json" in str(error.value)


def test_a_folder_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No efficiency_plan\.json .* the folder has no plan"):
        EfficiencyPlan.from_pretrained(tmp_path)


def test_applying_twice_changes_nothing_and_another_plan_is_refused() -> None:
    chosen = plan()
    model, processor = chosen.apply(*stock("llava"))
    assert chosen.apply(model, processor) == (model, processor)
    assert chosen.apply(model)[0] is model  # the pruner is there
    for other, said in (
        (plan(token_pruner=None), "token pruner"),
        (plan(token_pruner={"budget": 2}), "another token pruner"),
        (plan(sparsity=None), "sparse adapter"),
        (plan(sparsity={"sparsity": 0.5, "target": "delta"}), "sparsity=0.9, not 0.5"),
        (plan(precision=FOUR_BITS), "without quantization"),
    ):
        with pytest.raises(ValueError, match=said):
            other.apply(model, processor)


def test_what_the_model_cannot_have_is_refused_and_nothing_is_left_on_it() -> None:
    model, processor = stock("llava")
    with pytest.raises(ValueError, match="processor is needed"):
        plan().apply(model)
    with pytest.raises(ValueError, match="No modules were targeted"):
        plan(sparsity=BiDSTConfig(target_modules=["no_such_layer"])).apply(model, processor)
    assert pruner_below(model) is None
    with pytest.raises(TypeError, match="model='here'"):
        plan().apply("here")
    lora = get_peft_model(llama(), LoraConfig(target_modules=LAYERS))
    with pytest.raises(ValueError, match="LoraConfig"):
        plan(token_pruner=None).apply(lora)
    stock_again = attach_token_pruner(*stock("llava"), TokenPrunerConfig(budget=4))[0]
    with pytest.raises(ValueError, match="and the plan has none"):
        dataclasses.replace(plan(), token_pruner=None).apply(stock_again)
