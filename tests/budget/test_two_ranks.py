"""A plan's training on two processes, as `accelerate launch` and torchrun start them."""

from pathlib import Path

import pytest
import torch

from hf_efficient import EfficiencyPlan
from tests.budget.plans import plan
from tests.sparsity.ranks import on_two_ranks

PROGRAM = """
import os, torch
from hf_efficient import EfficientTrainer
from tests.budget.plans import plan
from tests.budget.test_efficient_trainer import arguments, rows
from tests.tiny import stock

for target in ("delta", "weight"):
    chosen = plan(sparsity={**plan().to_dict()["sparsity"], "target": target, "train_others": False})
    model, processor = chosen.apply(*stock("llava"))
    run = EfficientTrainer(
        model, arguments(f"{target}-out", max_steps=4, save_strategy="steps", save_steps=4), plan=chosen,
        processing_class=processor, train_dataset=rows(processor, 8),
    )
    run.train()
    torch.save(run.model.state_dict(), f"{target}-{os.environ['RANK']}.pt")
"""


@pytest.mark.slow
def test_both_ranks_have_the_same_model_and_the_checkpoint_has_the_plan(tmp_path: Path) -> None:
    on_two_ranks(PROGRAM, tmp_path)
    for target in ("delta", "weight"):
        first, second = (torch.load(tmp_path / f"{target}-{rank}.pt") for rank in "01")
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
        saved = EfficiencyPlan.from_pretrained(tmp_path / f"{target}-out" / "checkpoint-4")
        assert saved.token_pruner == plan().token_pruner
        assert saved.sparsity is not None
        assert saved.sparsity.target == target
