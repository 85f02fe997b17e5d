"""Checks of the Trainer: that it can work with the method, and that every step was perturbed."""

from __future__ import annotations

from typing import Any

from transformers.utils import logging

from hf_efficient.compat.trl import generates_in_training_step
from hf_efficient.extras import extra
from hf_efficient.optimization.engine.adapters import low_rank_terms
from hf_efficient.optimization.engine.exchange import Buffers
from hf_efficient.optimization.engine.memory import MemoryGuard
from hf_efficient.optimization.engine.monitor import StepMonitor
from hf_efficient.optimization.engine.perturbation import Weights
from hf_efficient.optimization.engine.refusals import refuse_optimizer

with extra("training"):
    from transformers import TrainerCallback

logger = logging.get_logger(__name__)


class StepCheck(TrainerCallback):
    """Checks, around each step of the optimizer, that its gradient was taken at perturbed weights."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.monitor = StepMonitor(type(trainer).__name__, logger.warning)
        self.guard = MemoryGuard()
        self.buffers = Buffers()  # of the training that runs
        self._optimizer: object = None
        self._prepared: tuple[int, int] | None = None  # the training and the step whose gradients are ours

    def begin(self, step: int, weights: Weights) -> None:
        """Called before the weights of a step are moved."""
        optimizer = self.trainer.optimizer
        if optimizer is not None and optimizer is not self._optimizer:
            refuse_optimizer(optimizer, weights)
        self._optimizer, self._prepared = optimizer, (id(self.trainer.state), step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.sam_args.rho == 0:
            return
        if self._prepared != (id(self.trainer.state), self.trainer.state.global_step):
            name = type(self.trainer).__name__
            raise ValueError(
                f"{name}.training_step has not called that of SAMTrainerMixin: no weight was perturbed for this "
                "gradient. Call super().training_step(...) in it, or override compute_loss instead."
            )
        if self.trainer._variant is not None:
            self.guard.before_step(self.trainer._variant.memory)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.buffers.clear()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.guard.after_step()


def refuse_trainer(trainer: Any) -> None:
    """Refuse a Trainer that hides its gradients, generates its data, or steps inside backward, or a model.

    Raises:
        ValueError: DeepSpeed, FSDP1, generation in the training step, an optimizer that steps inside backward, or a
            model without merged weights that are to be perturbed.
    """
    if trainer.is_deepspeed_enabled:
        raise ValueError("DeepSpeed keeps gradients where they cannot be read; use DDP or FSDP2.")
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
        raise ValueError('FSDP1 hides its parameters in flat pieces; use FSDP2: fsdp_config={"version": 2}, or DDP.')
    if generates_in_training_step(trainer):
        raise ValueError(
            f"{type(trainer).__name__} generates its data inside the training step, where weights are perturbed; "
            "use it without SAMTrainerMixin."
        )
    _refuse_steps_inside_backward(trainer)
    if trainer.sam_args.perturb == "merged" and trainer.model is not None:
        low_rank_terms(trainer.model)


def _refuse_steps_inside_backward(trainer: Any) -> None:
    """By name, before anything is done; whatever else steps there is found in the first step."""
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    by_name = trainer.optimizer is None and getattr(trainer, "optimizer_cls_and_kwargs", None) is None
    if by_name and trainer.sam_args.rho > 0 and (name.endswith("_layerwise") or name in ("lomo", "adalomo")):
        other = name.removesuffix("_layerwise") if name.endswith("_layerwise") else "adafactor"
        raise ValueError(
            f"optim={name!r} steps inside backward, where the weights are perturbed, and its step would be lost; "
            f'use optim="{other}".'
        )
