"""A plan on the Hub, over HTTP against one on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_hub import LocalHub
from tests.test_hub import run_against

PUSH = """
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
from hf_efficient import EfficiencyPlan, load_token_pruned
from tests.budget.plans import applied, logits, plan
from tests.tiny import stock

chosen = plan()
model, processor = applied(chosen)
expected = logits(model, processor)
chosen.push_to_hub("tester/plan", model, processor)
"""
READ = """
assert EfficiencyPlan.from_pretrained("tester/plan") == chosen
assert EfficiencyPlan.of("tester/plan", revision="main") == chosen
back, back_processor = EfficiencyPlan.load("tester/plan")
assert torch.equal(logits(back.eval(), back_processor), expected)
plain = AutoModelForImageTextToText.from_pretrained("tester/plan")
assert torch.equal(logits(plain, AutoProcessor.from_pretrained("tester/plan")), logits(*stock("llava")))
assert torch.equal(plain.lm_head.weight, stock("llava")[0].lm_head.weight)
adapted = PeftModel.from_pretrained(plain, "tester/plan", subfolder="adapter")
assert adapted.peft_config["default"].base_model_name_or_path == "tester/plan"
assert load_token_pruned("tester/plan")[0].token_pruner.config == chosen.token_pruner
"""
AGAIN = """
without = plan(sparsity=None)
without.push_to_hub("tester/plan", *applied(without))
assert EfficiencyPlan.from_pretrained("tester/plan") == without
"""


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as server:
        yield server


def test_plan_and_model_go_to_the_hub_in_one_commit_and_come_back(hub: LocalHub, tmp_path: Path) -> None:
    run_against(hub, tmp_path, PUSH + READ)
    files = hub.repos["tester/plan"]
    assert {"efficiency_plan.json", "model.safetensors", "adapter/adapter_config.json", "README.md"} <= set(files)
    assert b'EfficiencyPlan.load("THIS_FOLDER_OR_HUB_ID")' in files["README.md"]
    assert len([path for verb, path in hub.requests if verb == "POST" and "/commit/" in path]) == 1


def test_a_second_plan_takes_the_place_of_the_first_but_not_of_a_card(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["tester/plan"] = {"README.md": b"# Mine\n", "notes.txt": b"n"}
    run_against(hub, tmp_path, PUSH + AGAIN)
    files = hub.repos["tester/plan"]
    assert files["README.md"] == b"# Mine\n"
    assert files["notes.txt"] == b"n"
    assert not any(name.startswith("adapter/") for name in files)
    assert json.loads(files["efficiency_plan.json"])["sparsity"] is None
