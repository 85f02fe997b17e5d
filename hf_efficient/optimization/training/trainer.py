"""Sharpness-aware training in `transformers.Trainer` and everything built on it.

One Trainer runs every method, which `sam_args` names. `S2SAMTrainer` and `ZOSAMTrainer` are the same with theirs fixed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_efficient.extras import extra
from hf_efficient.files.checkpoints import WholeCheckpoints
from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.optimization.engine.batch_norm import copy_statistics, restore_statistics
from hf_efficient.optimization.engine.memory import MemoryGuard
from hf_efficient.optimization.engine.merged import weights_to_move
from hf_efficient.optimization.engine.monitor import StepMonitor
from hf_efficient.optimization.engine.perturbation import Weights
from hf_efficient.optimization.engine.refusals import no_step_while_perturbed
from hf_efficient.optimization.engine.variant import Variant, new_variant
from hf_efficient.optimization.variants.asam import asam_scaling
from hf_efficient.shards import local

from . import memory_file
from .batch import AccumulatedBatch, Inputs, cut_again
from .card import add_section
from .checks import StepCheck, refuse_trainer
from .weights_file import load_weights

with extra("training"):
    from transformers import Trainer

logger = logging.get_logger(__name__)

# For type checkers the mix-in is a Trainer; at run time any Trainer may follow it.
_AnyTrainer: Any = Trainer if TYPE_CHECKING else object


class SAMTrainerMixin(WholeCheckpoints, _AnyTrainer):
    """A mix-in before any Trainer: `class MyTrainer(SAMTrainerMixin, SFTTrainer)`, with `sam_args=SAMArguments(...)`.

    It works in `training_step` alone, which leaves the weights bit for bit as it found them: evaluation, saving,
    logging, generation, an exception or Ctrl-C never find perturbed weights. With gradient accumulation the
    micro-batches of a step are collected and run together at its end, so that all of them use the same point.

    A step whose loss or gradient is not finite is dropped: weights, optimizer state, what the method remembers and
    BatchNorm statistics stay as they were. (With a GradScaler, the scaler drops it and lowers its scale.)

    Training resumes from complete checkpoints only, whatever a kill or a full disk left.

    Args:
        sam_args: method and settings; SAM without them, or with `method=None`.
        args, kwargs: the Trainer's own.
    """

    _own_method, _fixed_method = "sam", False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(SAMTrainerMixin)]
        if Trainer in before:
            others = [c for c in before if issubclass(c, Trainer) and not issubclass(c, SAMTrainerMixin)]
            order = f"class {cls.__name__}(SAMTrainerMixin, {others[0].__name__})"
            raise TypeError(f"{cls.__name__}: {others[0].__name__} comes before SAMTrainerMixin, which would not act. "
                            f"Write {order}.")  # fmt: skip

    def __init__(self, *args: Any, sam_args: SAMArguments | None = None, **kwargs: Any) -> None:
        given = SAMArguments() if sam_args is None else sam_args
        if not isinstance(given, SAMArguments):
            raise TypeError(f"sam_args={given!r}; expected SAMArguments, such as SAMArguments(rho=0.05), or None.")
        self.sam_args = given.for_trainer(self._own_method, self._fixed_method, type(self).__name__)
        self._variant: Variant | None = None
        self._variant_of: object = None  # the training state that it belongs to
        self._micro_batches: list[Inputs] = []
        self._collecting_for: tuple[int, int] | None = None
        self._diagnostics: dict[str, float] = {}
        self._step_check = StepCheck(self)
        super().__init__(*args, **kwargs)
        refuse_trainer(self)
        # before all others: sparse training clears gradients of grown weights, which is not the optimizer's doing
        self.callback_handler.callbacks.insert(0, self._step_check)
        if self.sam_args.upcast:
            hold_in_float32(self.model)

    def __repr__(self) -> str:
        model = type(getattr(self, "model", None)).__name__
        return f"{type(self).__name__}({model}, sam_args={self.sam_args!r})"

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """The Trainer's own, with 16-bit weights held in float32 if asked for."""
        model = super().call_model_init(trial)
        if self.sam_args.upcast:
            hold_in_float32(model)
        return model

    def training_step(self, model: nn.Module, inputs: Inputs, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch. The last one of a step runs them all, and returns the loss of all."""
        if self.sam_args.rho == 0:
            if self.sam_args.diagnostics_steps > 0:
                self._diagnostics = {"sam_rho": 0.0}
            return super().training_step(model, inputs, num_items_in_batch)
        step = (id(self.state), self.state.global_step)
        if self._collecting_for != step:
            self._micro_batches, self._collecting_for = [], step  # also after a step that was broken off
        self._micro_batches.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        micro_batches, self._micro_batches, self._collecting_for = self._micro_batches, [], None
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # schedule-free ones then train other weights than they evaluate
        parent = super().training_step
        bound = lambda batch: parent(model, batch, num_items_in_batch)  # noqa: E731
        return self._sam_step(bound, model, micro_batches, num_items_in_batch)

    def _sam_step(self, parent: Any, model: nn.Module, micro_batches: list[Inputs], num_items: Any) -> Tensor:
        arguments, step = self.sam_args, self.state.global_step
        variant, monitor = self._current_variant(), self._step_check.monitor
        scaling = asam_scaling if arguments.adaptive or variant.adaptive else None
        merged = model if arguments.perturb == "merged" else None
        cut_again(model)  # after evaluation some weights are still gathered, and copies of them would move
        weights = weights_to_move(
            model.parameters(), scaling, not arguments.perturb_pruned, merged, self._step_check.buffers
        )
        batch = AccumulatedBatch(self, parent, model, micro_batches, num_items, weights, arguments.batch_norm_pass,
                                 arguments.probe_dropout)  # fmt: skip
        variant.step = step
        self._step_check.begin(step, weights)
        rho = arguments.rho_at(step, self.state.max_steps)
        logged = arguments.diagnostics_steps > 0 and step % arguments.diagnostics_steps == 0
        statistics = copy_statistics(model)
        measure = logged or (weights.has_16_bits and not monitor.has_warned("16 bits"))
        with no_step_while_perturbed(weights), variant.perturbed(weights, batch, rho, measure):
            batch.backward()
        if lost := weights.lost_to_rounding():
            monitor.warn_once(
                "16 bits", f"{lost} Use SAMArguments(upcast=True) with bf16=True or fp16=True, or a larger rho."
            )
        if not batch.is_finite():
            self._drop(weights, statistics)
        else:
            monitor.stepped(variant, weights, batch.norm or 0.0, rho)
            if logged:
                self._diagnostics = {"sam_rho": rho, "sam_gradient_norm": batch.norm or 0.0}
                if weights.cosine is not None:
                    self._diagnostics |= {"sam_cosine": weights.cosine, "sam_distance": weights.distance}
        assert batch.reported is not None
        return batch.reported

    def _current_variant(self) -> Variant:
        if self._variant is None or self._variant_of is not self.state:  # a new training starts from nothing
            self._variant, self._variant_of = new_variant(self.sam_args, lambda: self.optimizer), self.state
            self._step_check.guard = MemoryGuard()
        return self._variant

    def _drop(self, weights: Weights, statistics: list[tuple[Tensor, Tensor]]) -> None:
        """Make nothing of this step: no optimizer changes a weight that has no gradient."""
        restore_statistics(statistics)
        with torch.no_grad():
            if self.accelerator.scaler is not None:
                for g in weights.gradients().values():
                    local(g).fill_(float("inf"))  # the scaler's own sign for a step to skip
                return
        weights.take_gradients()
        dropped = f"Step {self.state.global_step}: loss or gradient is not finite; the step is dropped."
        self._step_check.monitor.warn_once("dropped", dropped)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's own, with the diagnostics beside the training loss."""
        if "loss" in logs and self._diagnostics:
            logs = {**logs, **self._diagnostics}
            self._diagnostics = {}
        super().log(logs, *args, **kwargs)

    @property
    def step_period(self) -> int:
        """Steps after which the costs of a step repeat: k of LookSAM, else 1."""
        return 1 if self.sam_args.rho == 0 else self._current_variant().period

    @contextmanager
    def memory_kept(self) -> Iterator[None]:
        """Steps inside the block go on from what the method remembers; after it that is as it was before."""
        before, check, variant = dict(vars(self)), self._step_check, self._variant
        checked = dict(vars(check))
        if variant is not None:
            self._variant = copy.copy(variant)
            self._variant.memory = {name: dict(direction) for name, direction in variant.memory.items()}
        self._micro_batches, self._collecting_for = [], None
        check.monitor = StepMonitor(check.monitor.name, check.monitor.warn)
        try:
            yield
        finally:
            check.__dict__.update(checked)
            names = ("_variant", "_variant_of", "_micro_batches", "_collecting_for", "_diagnostics")
            self.__dict__.update({name: before[name] for name in names})

    # What the method remembers is part of the training state: saved and loaded where the optimizer's is.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._variant is not None and (self.args.should_save or memory_file.is_sharded(self.model)):
            path = memory_file.path_in(output_dir, self.model, self.args.process_index)
            memory_file.save(path, self.model, self._variant.memory, self.sam_args)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = memory_file.path_in(checkpoint, self.model, self.args.process_index)
        if warning := memory_file.load(path, self.model, self._current_variant().memory, self.sam_args):
            logger.warning(warning)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is not None or not load_weights(self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or not load_weights(self.model, self.state.best_model_checkpoint or ""):
            super()._load_best_model()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's own card, with a section on the method and its arguments."""
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir) / "README.md"
        if self.is_world_process_zero() and path.exists():
            add_section(path, self.sam_args)


def hold_in_float32(model: nn.Module) -> None:
    """Trainable 16-bit weights become float32 in place; autocast (`bf16=True`) still computes in 16 bits."""
    for p in model.parameters():
        if p.requires_grad and p.is_floating_point() and p.dtype.itemsize < 4:
            p.data = p.data.float()


class SAMTrainer(SAMTrainerMixin, Trainer):
    """`transformers.Trainer` with the method that `sam_args` names; SAM by default.

    Args: as for `SAMTrainerMixin`.
    """


class S2SAMTrainer(SAMTrainer):
    """`transformers.Trainer` with S2-SAM: the perturbation of SAM at the cost of plain training.

    Raises:
        ValueError: `sam_args` names another method.
    """

    _own_method, _fixed_method = "s2sam", True


class ZOSAMTrainer(SAMTrainer):
    """`transformers.Trainer` with ZO-SAM: the perturbation is estimated from forward passes alone.

    Raises:
        ValueError: `sam_args` names another method.
    """

    _own_method, _fixed_method = "zosam", True
