"""How the VLMs of the examples are trained: settings, and going on after an interruption."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


def training_arguments(folder: Path, steps: int, batch: int, learning_rate: float, seed: int) -> TrainingArguments:
    """AdamW, warm-up, cosine; a checkpoint every few minutes."""
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=batch, learning_rate=learning_rate,
        warmup_steps=200, lr_scheduler_type="cosine", weight_decay=0.05, adam_beta2=0.98, max_grad_norm=1.0, bf16=True,
        seed=seed, data_seed=seed, logging_steps=50, save_steps=250, save_total_limit=2, remove_unused_columns=False,
        dataloader_num_workers=1, report_to="none", disable_tqdm=True, train_sampling_strategy="sequential",
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip


def train_on(trainer: Trainer) -> None:
    """Train from the last checkpoint if there is one.

    A checkpoint of a LLaVA has the names of weights that `save_pretrained` writes, which the Trainer does not find in
    the model: it would go on with fresh weights and a warning. So they are loaded here, by `from_pretrained`.
    """
    last = get_last_checkpoint(trainer.args.output_dir)
    if last is not None and isinstance(trainer.model, PreTrainedModel):
        stored = type(trainer.model).from_pretrained(last).state_dict()
        trainer.model.load_state_dict({name: stored[name] for name in trainer.model.state_dict()})
    trainer.train(resume_from_checkpoint=last)


def save_stage(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Model and processor into a folder, which is there only once all of it is: it tells that the stage is done."""
    draft = folder.with_name("draft")
    model.save_pretrained(draft)
    processor.save_pretrained(draft)
    draft.rename(folder)
