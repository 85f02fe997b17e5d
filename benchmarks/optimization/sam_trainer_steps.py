"""Whole steps of the Trainer with every method of sharpness-aware training, to be timed side by side."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from hf_efficient import SAMArguments, SAMTrainer

METHODS: dict[str, SAMArguments | None] = {
    "plain": None,
    "S2-SAM": SAMArguments("s2sam"),
    "MSAM": SAMArguments("msam"),
    "ZO-SAM, half the batch": SAMArguments("zosam", probe_fraction=0.5),
    "ZO-SAM, half the batch, probes without dropout": SAMArguments("zosam", probe_fraction=0.5, probe_dropout=False),
    "guided ZO-SAM, half the batch": SAMArguments("zosam", probe_fraction=0.5, guided=True),
    "ZO-SAM": SAMArguments("zosam"),
    "ZO-SAM, probes without dropout": SAMArguments("zosam", probe_dropout=False),
    "guided ZO-SAM": SAMArguments("zosam", guided=True),
    "LookSAM, k=5": SAMArguments("looksam"),
    "SAM": SAMArguments("sam"),
    "ASAM": SAMArguments("asam"),
}


def trainer_steps(
    build: Callable[[int], Any], batch: int, methods: list[str], **settings: Any
) -> dict[str, tuple[Any, Callable[[], None]]]:
    """For each method its Trainer, and a function that does one whole step: forward, backward, clipping, SGD.

    All share one model, so that memory holds it once. SGD, since the cheaper the optimizer, the more the rest counts.

    Args:
        build: batch -> model and inputs.
        batch: rows of a batch.
        methods: names of `METHODS`.
        settings: of `TrainingArguments`; on the CPU unless they say otherwise.
    """
    torch.manual_seed(0)
    model, inputs = build(batch)
    steps: dict[str, Any] = {}
    for name in methods:
        method = METHODS[name]
        args = TrainingArguments(
            tempfile.mkdtemp(), per_device_train_batch_size=batch, report_to="none", disable_tqdm=True, optim="sgd",
            optim_args="momentum=0.9" if name == "MSAM" else None, learning_rate=1e-4, **{"use_cpu": True, **settings},
        )  # fmt: skip
        trainer: Any = Trainer(model, args) if method is None else SAMTrainer(model, args, sam_args=method)
        trainer.create_optimizer_and_scheduler(1000)
        trainer.optimizer = trainer.accelerator.prepare_optimizer(trainer.optimizer)
        trainer.current_gradient_accumulation_steps = 1

        def step(trainer: Any = trainer) -> None:
            trainer.training_step(model, dict(inputs))
            trainer._clip_grad_norm(model)
            trainer.optimizer.step()
            model.zero_grad()
            trainer.state.global_step += 1

        steps[name] = (trainer, step)
    return steps
