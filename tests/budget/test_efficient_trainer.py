"""One Trainer for all parts of a plan: every pair of methods, resuming, and what it leaves behind."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from hf_efficient import BiDSTConfig, EfficiencyPlan, EfficientTrainer, SAMArguments, TokenPrunerConfig
from hf_efficient.methods import REPRESENTATION
from tests.budget.plans import LAYERS, logits, plan
from tests.sparsity.models import layers
from tests.sparsity.models import llama as text_model
from tests.tiny import prompts, stock

BUDGET = 4
SPARSE = {
    target: BiDSTConfig(
        sparsity=0.9, target=target, target_modules=LAYERS, update_interval=1, stop_fraction=1.0, score_interval=1
    )
    for target in ("delta", "weight")
}
SAM = {name: SAMArguments(name, rho=0.05) for name in ("s2sam", "zosam")}


def rows(processor: Any, count: int = 4) -> list[dict[str, torch.Tensor]]:
    """Prompts with an image each, made by a processor."""
    made = []
    for i in range(count):
        inputs = processor(**prompts("llava", [[i % 3]]))
        row = {name: value[0] for name, value in inputs.items()}
        made.append({**row, "labels": row["input_ids"].where(row["input_ids"] < 60, -100)})
    return made


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 1, "learning_rate": 1e-2,
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "report_to": "none", "use_cpu": True,
    }  # fmt: skip
    return TrainingArguments(**{**defaults, **more})


def trainer(chosen: EfficiencyPlan, folder: Path, callbacks: Any = None, **more: Any) -> EfficientTrainer:
    """A Trainer of the tiny LLaVA under a plan, with data that its processor made."""
    model, processor = chosen.apply(*stock("llava"))
    return EfficientTrainer(
        model, arguments(folder, **more), plan=chosen, processing_class=processor, train_dataset=rows(processor),
        callbacks=callbacks,
    )  # fmt: skip


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def counts(model: Any) -> dict[str, int]:
    """Active weights of every sparse layer, each counted once."""
    return {name: len(set(m.sparse_weight("default").indices.tolist())) for name, m in layers(model).items()}


@pytest.mark.parametrize("method", REPRESENTATION.names)
def test_every_selection_method_trains_with_every_sparsity_and_every_optimizer(method: str, tmp_path: Path) -> None:
    """In each of the nine: the loss is finite, weights move, the budget of weights is exact, K tokens are kept.

    And each of the three optimizers goes another way than the others.
    """
    for sparsity in (None, *SPARSE.values()):
        ends: list[dict[str, torch.Tensor]] = []
        for sam in (None, *SAM.values()):
            chosen = EfficiencyPlan(TokenPrunerConfig(method, budget=BUDGET), sparsity, sam)
            run = trainer(chosen, tmp_path)
            before, budget = state(run.model), counts(run.model)
            assert math.isfinite(run.train().training_loss)
            assert any(not torch.equal(t, before[n]) for n, t in run.model.state_dict().items())
            assert counts(run.model) == budget
            if sparsity is not None:
                total = sum(layer.get_base_weight().numel() for layer in layers(run.model).values())
                assert sum(budget.values()) == round(0.1 * total)
            (unit,) = run.model.token_pruner.last
            assert len(unit.indices) == BUDGET < unit.num_tokens
            ends.append(state(run.model))
        for one, other in combinations(ends, 2):
            assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


class Killed(BaseException):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("sparsity", [None, *SPARSE], ids=str)
@pytest.mark.parametrize("sam", [None, *SAM], ids=str)
def test_a_broken_off_training_resumes_to_the_bit(sparsity: str | None, sam: str | None, tmp_path: Path) -> None:
    chosen = plan(sparsity=SPARSE.get(sparsity or ""), sam=SAM.get(sam or ""))
    often: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "lr_scheduler_type": "cosine"}
    whole = trainer(chosen, tmp_path / "whole", **often)
    whole.train()
    killed = trainer(chosen, tmp_path / "killed", [KillAt(5)], save_strategy="steps", **often)
    with pytest.raises(Killed):
        killed.train()
    again = trainer(EfficiencyPlan.from_pretrained(tmp_path / "killed/checkpoint-4"), tmp_path / "killed", **often)
    again.train(resume_from_checkpoint=True)
    wanted = whole.model.state_dict()
    assert [n for n, t in again.model.state_dict().items() if not torch.equal(t, wanted[n])] == []
    if sparsity is None:  # the Trainer by itself does not find these weights, and goes on with fresh ones
        assert not torch.equal(wanted["lm_head.weight"], stock("llava")[0].lm_head.weight)


def test_another_plan_does_not_resume(tmp_path: Path) -> None:
    trainer(plan(), tmp_path, save_strategy="steps", save_steps=1).train()
    other = trainer(plan(token_pruner={"method": "divprune", "budget": 3}), tmp_path)
    with pytest.raises(ValueError, match="another plan: token_pruner differ"):
        other.train(resume_from_checkpoint=True)


def test_the_best_checkpoint_of_a_vision_language_model_is_found(tmp_path: Path) -> None:
    chosen = plan(sparsity=None)
    model, processor = chosen.apply(*stock("llava"))
    data = rows(processor)
    run = EfficientTrainer(
        model, arguments(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, eval_strategy="steps",
                         eval_steps=1, load_best_model_at_end=True, learning_rate=0.5),
        plan=chosen, processing_class=processor, train_dataset=data, eval_dataset=data,
    )  # fmt: skip
    run.train()
    best = type(model).from_pretrained(run.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(tensor, best[name]) for name, tensor in run.model.state_dict().items())


def test_what_the_trainer_saves_is_loaded_with_its_plan(tmp_path: Path) -> None:
    for part in stock("llava"):
        part.save_pretrained(tmp_path / "stock")
    model, processor = EfficiencyPlan.load(tmp_path / "stock", plan=plan())
    run = EfficientTrainer(
        model, arguments(tmp_path / "out"), plan=plan(), processing_class=processor, train_dataset=rows(processor)
    )
    run.train()
    run.save_model()
    run.create_model_card()
    assert "keeps 4 visual tokens" in (tmp_path / "out" / "README.md").read_text()
    plan().save_pretrained(tmp_path / "plan", run.model, processor)
    with pytest.raises(FileExistsError, match="adapter at its top"):
        plan().save_pretrained(tmp_path / "out", run.model, processor)
    for folder in ("out", "plan"):
        back, back_processor = EfficiencyPlan.load(tmp_path / folder)
        assert torch.equal(logits(back.eval(), back_processor), logits(run.model.eval(), processor))


@pytest.mark.parametrize("sam", [None, "s2sam"])
def test_a_text_model_trains_under_a_plan(sam: str | None, tmp_path: Path) -> None:
    chosen = EfficiencyPlan(sparsity=SPARSE["weight"], sam=SAM.get(sam or ""))
    ids = torch.arange(16).view(2, 8)
    data = [{"input_ids": row, "labels": row} for row in ids]
    run = EfficientTrainer(text_model(), arguments(tmp_path, max_steps=4), plan=chosen.to_dict(), train_dataset=data)
    budget, before = counts(run.model), state(run.model)
    run.train()
    assert counts(run.model) == budget
    masks = {name: t for name, t in run.model.state_dict().items() if name.endswith("indices")}
    assert any(not torch.equal(indices, before[name]) for name, indices in masks.items())
    run.create_model_card()
    assert ("harpness" in (tmp_path / "README.md").read_text()) is (sam is not None)


def test_what_a_plan_does_not_leave_to_the_trainer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sam_args"):
        EfficientTrainer(text_model(), arguments(tmp_path), plan=EfficiencyPlan(), sam_args=SAMArguments())
    with pytest.raises(ValueError, match="needs a model"):
        EfficientTrainer(plan=EfficiencyPlan(), model_init=text_model)
    with pytest.raises(ValueError, match="processor is needed"):
        EfficientTrainer(stock("llava")[0], arguments(tmp_path), plan=plan())
