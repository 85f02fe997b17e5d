"""Sparse training in the Trainer: a callback, and the one that every Trainer has by default."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_efficient.optimizer_state import innermost
from hf_efficient.sparsity.training.engine import ENGINES, SparseTraining
from hf_efficient.sparsity.training.monitor import warn_that_no_exchange_came

from .layer import BiDSTLayer
from .loop import ONE_DEVICE, make_training


class SparsityCallback(TrainerCallback):
    """Exchanges the weights of a BiDST model in the HF Trainer. Trainers made after such a model have one by default.

    All settings come from the model's config. Weights are exchanged in `on_optimizer_step`, while gradients still
    exist. Metrics are added to every log entry. A Trainer's checkpoint resumes bit for bit. An unfinished one, or one
    whose model and optimizer are of different steps, raises (`BiDSTTrainer` returns to the last whole checkpoint).

    Args:
        adapter_name: of the adapter that trains, if it is not the active one: `callbacks=[SparsityCallback("b")]`.

    Raises:
        ValueError: at the start of training, under FSDP or DeepSpeed.
    """

    def __init__(self, adapter_name: str | None = None) -> None:
        self.adapter_name = adapter_name
        self.training: SparseTraining | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(adapter_name={self.adapter_name!r})"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to model and optimizer; a checkpoint's state is in the optimizer already."""
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise ValueError(
                "Dynamic sparse training needs all gradients of a layer on each rank; FSDP and DeepSpeed shard them. "
                "Train with DDP: remove `fsdp` and `deepspeed` from the arguments. In a loop of your own FSDP2 works "
                "(docs/bidst.md)."
            )
        training = make_training(kwargs["model"], innermost(kwargs["optimizer"]), state.max_steps, self.adapter_name)
        if getattr(args, "n_gpu", 1) > 1 and (training.last_exchange or training.init_steps):
            training.detach()
            raise ValueError(f"On {args.n_gpu} devices the Trainer uses nn.DataParallel, which {ONE_DEVICE}")
        self.training = training

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count an optimizer step, unless it was skipped because a gradient overflowed."""
        if self.training is not None and not getattr(kwargs["optimizer"], "step_was_skipped", False):
            self.training.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn if no weight was exchanged, though exchanges were planned."""
        training = self.training
        if training is not None and 0 < training.last_exchange != training.steps and not training.state["updates"]:
            warn_that_no_exchange_came(training.steps, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add `SparseTraining.report` to the entry and to the history."""
        if self.training is None or logs is None or "loss" not in logs:
            return
        report = {name: round(value, 6) for name, value in self.training.report().items()}
        logs.update(report)
        if state.log_history:
            state.log_history[-1].update(report)


class DefaultSparsityCallback(SparsityCallback):
    """The callback that every Trainer has by default: acts if a BiDST model trains and has no other engine."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait: callbacks that were passed to the Trainer are called later, and take precedence."""
        if self.training is not None:
            self.training.detach()
        self.training, self.checked = None, False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach at the first step, if the model needs it."""
        if self.checked:
            return
        self.checked = True
        if not trains(kwargs["model"]):
            return
        optimizer = innermost(kwargs["optimizer"])
        if not any(engine.optimizer is optimizer for engine in ENGINES):
            super().on_train_begin(args, state, control, **kwargs)


def trains(model: nn.Module) -> bool:
    """Whether an active BiDST adapter of the model is trainable."""
    layers = [module for module in model.modules() if isinstance(module, BiDSTLayer)]
    active = [layer.sparse_weight(a) for layer in layers for a in layer.active_adapters if a in layer.bidst_weight]
    return any(weight.values.requires_grad for weight in active)
