"""A plan's folder: what each loader reads in it, that a round trip changes nothing, and whose files stay."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_efficient import BiDSTConfig, EfficiencyPlan, load_token_pruned
from hf_efficient.budget.plan.file import NAME
from tests.budget.plans import applied, files, logits, plan
from tests.sparsity.models import disturb, llama
from tests.sparsity.models import logits as llama_logits
from tests.tiny import stock

ALL = {NAME, "README.md", "config.json", "model.safetensors", "token_pruner_config.json", "tokenizer.json",
       "adapter/adapter_config.json", "adapter/adapter_model.safetensors"}  # fmt: skip
WEIGHT = BiDSTConfig(sparsity=0.8, target="weight", target_modules=["up_proj", "down_proj"])


@pytest.mark.parametrize("sparsity", [None, plan().sparsity, WEIGHT], ids=["none", "delta", "weight"])
def test_every_loader_reads_as_far_as_it_can(sparsity: Any, tmp_path: Path) -> None:
    stock_model, stock_processor = stock("llava")
    plain = logits(stock_model, stock_processor)
    chosen = plan(sparsity=sparsity)
    model, processor = applied(chosen)
    expected = logits(model, processor)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chosen.save_pretrained(tmp_path / "one", model, processor)
    assert set(files(tmp_path / "one")) >= {name for name in ALL if sparsity is not None or "adapter" not in name}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    ours, ours_processor = EfficiencyPlan.load(tmp_path / "one")
    assert torch.equal(logits(ours, ours_processor), expected)
    loaded = ours.state_dict()
    assert loaded.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.items())

    transformers_model = AutoModelForImageTextToText.from_pretrained(tmp_path / "one")
    transformers_processor = AutoProcessor.from_pretrained(tmp_path / "one")
    assert torch.equal(logits(transformers_model, transformers_processor), plain)
    assert type(transformers_model) is type(stock_model)
    if sparsity is not None:
        adapted = PeftModel.from_pretrained(transformers_model, tmp_path / "one", subfolder="adapter")
        assert not torch.equal(logits(adapted, transformers_processor), plain)
        alone, alone_processor = applied(dataclasses.replace(chosen, token_pruner=None))
        assert torch.equal(logits(adapted, transformers_processor), logits(alone, alone_processor))
    pruned, pruned_processor = load_token_pruned(tmp_path / "one")
    assert pruned.token_pruner.config == chosen.token_pruner
    assert torch.equal(logits(pruned.eval(), pruned_processor), expected)

    for source, target in (("one", "two"), ("two", "three")):  # the first is of a model that was made, not loaded
        pair = EfficiencyPlan.load(tmp_path / source)
        EfficiencyPlan.from_pretrained(tmp_path / source).save_pretrained(tmp_path / target, *pair)
    one, two, three = (files(tmp_path / name) for name in ("one", "two", "three"))
    assert one.keys() == two.keys() == three.keys()
    assert [name for name in two if two[name] != three[name] and name != "README.md"] == []  # which names the model
    assert [name for name in one if one[name] != two[name] and name.endswith((".safetensors", NAME))] == []


def test_a_process_without_this_package_gets_the_stock_weights(tmp_path: Path) -> None:
    model, processor = applied(plan())
    plan().save_pretrained(tmp_path / "plan", model, processor)
    code = f"""
import sys, torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained({str(tmp_path / "plan")!r})
assert not any(name.startswith("hf_efficient") for name in sys.modules)
torch.save(model.state_dict(), {str(tmp_path / "state.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, wanted = torch.load(tmp_path / "state.pt"), stock("llava")[0].state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


@pytest.mark.parametrize("target", ["weight", "delta"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_text_model_needs_no_processor(target: str, tied: bool, tmp_path: Path) -> None:
    chosen = EfficiencyPlan(sparsity=BiDSTConfig(sparsity=0.8, target=target, task_type="CAUSAL_LM"))
    plain = llama_logits(llama(tied))
    model, nothing = chosen.apply(llama(tied))
    disturb(model)
    chosen.save_pretrained(tmp_path, model)
    back, processor = EfficiencyPlan.load(tmp_path, is_trainable=True)
    assert processor is None is nothing
    assert torch.equal(llama_logits(back), llama_logits(model))
    assert any(p.requires_grad for p in back.parameters())
    assert torch.equal(llama_logits(AutoModelForCausalLM.from_pretrained(tmp_path)), plain)


def test_a_lora_adapter_beside_a_pruner_is_saved_as_well(tmp_path: Path) -> None:
    chosen = plan(sparsity=None, sam=None)
    model, processor = chosen.apply(*stock("llava"))
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    chosen.save_pretrained(tmp_path, model, processor)
    back, back_processor = EfficiencyPlan.load(tmp_path)
    assert torch.equal(logits(back, back_processor), logits(model, processor))


def test_a_stock_model_is_loaded_with_a_plan(tmp_path: Path) -> None:
    for part in stock("llava"):
        part.save_pretrained(tmp_path / "stock")
    model, processor = EfficiencyPlan.load(tmp_path / "stock", plan=plan().to_dict())
    assert torch.equal(logits(model, processor), logits(*plan().apply(*stock("llava"))))
    with pytest.raises(FileNotFoundError, match="has no plan"):
        EfficiencyPlan.load(tmp_path / "stock")


def test_files_of_the_user_stay_and_files_of_an_earlier_plan_go(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "a.txt").write_text("a")
    (folder / "README.md").write_text("# My model\n")
    (folder / "link").symlink_to("notes")
    chosen = plan()
    model, processor = applied(chosen)
    for _ in range(2):
        chosen.save_pretrained(folder, model, processor)
    without = plan(sparsity=None)
    without.save_pretrained(folder, *applied(without))
    found = files(folder)
    assert found["notes/a.txt"] == b"a"
    assert found["README.md"] == b"# My model\n"
    assert (folder / "link").is_symlink()
    assert not any(name.startswith("adapter/") for name in found)
    assert EfficiencyPlan.from_pretrained(folder) == without
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]  # no draft, no lock


def test_a_file_of_the_user_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match=r"config\.json' is there already"):
        plan().save_pretrained(tmp_path / "mine", *applied(plan()))
    assert files(tmp_path) == before
    (tmp_path / "mine" / NAME).write_text("[]")
    with pytest.raises(FileExistsError, match="not replaced"):
        plan().save_pretrained(tmp_path / "mine")


def test_a_broken_off_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = applied(plan())
    plan().save_pretrained(tmp_path / "mine", model, processor)
    before = files(tmp_path)
    monkeypatch.setattr("hf_efficient.budget.plan.file.write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plan(sam=None).save_pretrained(tmp_path / "mine", model, processor)
    assert files(tmp_path) == before


def test_the_card_says_what_was_done_and_is_replaced_until_somebody_edits_it(tmp_path: Path) -> None:
    class Report:
        def to_markdown(self) -> str:
            return "| tokens |\n|---|\n| 4 |"

    model, processor = applied(plan())
    plan().save_pretrained(tmp_path, model, processor, Report())
    card = (tmp_path / "README.md").read_text()
    for said in (
        "`divprune` keeps 4 visual tokens",
        "0.9 of the adapter's entries",
        "rho = 0.1",
        "| tokens |",
        'EfficiencyPlan.load("THIS_FOLDER_OR_HUB_ID")',
        'subfolder="adapter"',
        "token_pruner.budget: 4",
    ):
        assert said in card
    (snippet,) = [part for part in card.split("```") if part.startswith("python")]
    assert len([line for line in snippet.splitlines()[1:] if line]) <= 3
    changed = plan(sam=None)
    changed.save_pretrained(tmp_path, model, processor)
    assert "rho" not in (tmp_path / "README.md").read_text()
    edited = (tmp_path / "README.md").read_text().replace("under an", "under my")
    (tmp_path / "README.md").write_text(edited)
    plan().save_pretrained(tmp_path, model, processor)
    plan().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == edited


def test_models_that_are_not_as_planned_are_not_saved(tmp_path: Path) -> None:
    model, processor = applied(plan())
    cases = [
        (plan(), stock("llava"), "no sparse adapter"),
        (plan(), (model, None), "no processor"),
        (plan(sparsity=None), stock("llava"), "no token pruner"),
        (plan(sparsity={"sparsity": 0.5, "target": "delta"}), (model, processor), "not 0.5"),
        (plan(), (None, processor), "with its model"),
    ]
    for chosen, pair, said in cases:
        with pytest.raises(ValueError, match=said):
            chosen.save_pretrained(tmp_path / "none", *pair)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged into"):
        plan().save_pretrained(tmp_path / "none", model, processor)
    assert not (tmp_path / "none").exists()


def test_an_adapter_of_another_plan_is_noticed(tmp_path: Path) -> None:
    plan().save_pretrained(tmp_path, *applied(plan()))
    path = tmp_path / NAME
    values = json.loads(path.read_text())
    values["sparsity"]["sparsity"] = 0.5
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"sparsity=0\.9, not 0\.5"):
        EfficiencyPlan.load(tmp_path)


def test_precision_is_applied_on_load_and_an_adapter_on_top_of_it_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1)).save_pretrained(tmp_path / "stock")
    chosen = EfficiencyPlan(
        sparsity=BiDSTConfig(sparsity=0.8, target="delta", target_modules=["up_proj"]),
        precision={"quant_method": "bitsandbytes", "load_in_4bit": True},
    )
    with pytest.raises(ValueError, match="loaded without quantization"):
        chosen.apply(llama())
    model, _ = EfficiencyPlan.load(tmp_path / "stock", plan=chosen)
    disturb(model)
    assert model.get_base_model().is_loaded_in_4bit
    chosen.save_pretrained(tmp_path / "plan", model)  # before a forward, in which bitsandbytes rounds scales on a CPU
    back, _ = EfficiencyPlan.load(tmp_path / "plan")
    assert torch.equal(llama_logits(back), llama_logits(model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plan")  # whose config says how it is quantized
    alone, _ = EfficiencyPlan.load(tmp_path / "stock", plan=dataclasses.replace(chosen, sparsity=None))
    assert torch.equal(llama_logits(plain), llama_logits(alone))
    other = EfficiencyPlan(precision={**(chosen.precision or {}), "bnb_4bit_quant_type": "nf4"})
    with pytest.raises(ValueError, match="fp4"):
        other.apply(plain)
    with pytest.raises(ValueError, match="given twice"):
        EfficiencyPlan.load(tmp_path / "stock", plan=chosen, quantization_config=chosen.precision)
