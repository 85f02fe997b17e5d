"""Broken off anywhere and taken up again, a run ends at the same bits."""

import dataclasses
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.optimization.training.trainers import METHODS, bert, build, same, state, trained


class Killed(BaseException):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("method", ["s2sam", "guided", "looksam"])
def test_resuming_gives_the_uninterrupted_run_to_the_bit(method: str, tmp_path: Path) -> None:
    """Random places (twelve for S2-SAM) of a run with dropout, shuffling, accumulation and a schedule of rho."""
    settings = dataclasses.replace(METHODS[method], rho_schedule="cosine", rho=0.3)
    kwargs: dict[str, Any] = {
        "max_steps": 10, "gradient_accumulation_steps": 2, "save_strategy": "steps", "optim": "adamw_torch",
        "lr_scheduler_type": "cosine", "weight_decay": 0.01, "save_total_limit": 1,
    }  # fmt: skip
    reference = state(trained(tmp_path / "whole", settings, **{**kwargs, "save_strategy": "no"}).model)
    chance = random.Random(0)
    for case in range(12 if method == "s2sam" else 2):
        every, kill = chance.choice([1, 2, 3]), chance.randint(3, 9)
        folder = tmp_path / f"case{case}"
        killed = build(folder, settings, save_steps=every, **kwargs, build_kwargs={"callbacks": [KillAt(kill)]})
        with pytest.raises(Killed):
            killed.train()
        torch.manual_seed(random.randrange(1000))  # nothing may depend on this
        resumed = build(folder, settings, save_steps=every, **kwargs)
        resumed.train(resume_from_checkpoint=True)
        assert same(state(resumed.model), reference), (every, kill)


def test_a_checkpoint_without_memory_warns_and_starts_plainly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path, METHODS["s2sam"], max_steps=2, save_strategy="steps", save_steps=2)
    memory = tmp_path / "checkpoint-2" / "sam_memory.safetensors"
    assert memory.exists()
    memory.unlink()
    resumed = build(tmp_path, METHODS["s2sam"], max_steps=3)
    import transformers.utils.logging as logging

    logging.enable_propagation()
    resumed.train(resume_from_checkpoint=True)
    assert "first step is not perturbed" in caplog.text


class Die(TrainerCallback):
    """SIGKILL in a step: at its start, or (within) between its micro-batches."""

    def __init__(self, step: int, within: bool) -> None:
        self.step, self.within = step, within

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.within and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.within and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["s2sam", "guided", "looksam", "zosam", "sam", "asam", "msam"])
def test_a_process_that_was_killed_is_resumed_to_the_bit(method: str, tmp_path: Path) -> None:
    """Twelve random places in a run with dropout, shuffling, accumulation and clipping; the child is a fork."""
    kwargs: dict[str, Any] = {
        "max_steps": 8, "gradient_accumulation_steps": 2, "optim": "adamw_torch", "max_grad_norm": 0.5,
    }  # fmt: skip
    reference = state(trained(tmp_path / "whole", METHODS[method], **kwargs).model)
    chance = random.Random(1)
    for case in range(12):
        folder, step, within = tmp_path / str(case), chance.randint(1, 7), chance.random() < 0.5
        child = os.fork()
        if child == 0:
            killed = {"save_strategy": "steps", "save_steps": 1, "build_kwargs": {"callbacks": [Die(step, within)]}}
            try:
                build(folder, METHODS[method], **killed, **kwargs).train()
            finally:
                os._exit(1)  # whatever happens, no second pytest goes on
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        resumed = build(folder, METHODS[method], **kwargs)
        resumed.train(resume_from_checkpoint=True)
        assert same(state(resumed.model), reference), (step, within)


@pytest.mark.parametrize("method", METHODS)
def test_sparse_gradients_train_and_resume(method: str, tmp_path: Path) -> None:
    ends = []
    for resumes in (False, True):
        model = bert(dropout=0.0)
        embeddings = model.bert.embeddings.word_embeddings
        embeddings.sparse, embeddings.padding_idx = True, None
        settings = {
            "optim": "sgd", "optim_args": "momentum=0.9", "max_grad_norm": 0, "max_steps": 5, "save_strategy": "steps",
            "save_steps": 2,
        }  # fmt: skip
        trainer = build(tmp_path, METHODS[method], model, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resumes else None)
        ends.append(state(trainer.model))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name])
