"""Sharpness-aware training in `transformers.Trainer` and everything built on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers.utils import logging

from hf_efficient.extras import extra
from hf_efficient.files import write_text
from hf_efficient.files.checkpoints import WholeCheckpoints
from hf_efficient.methods import OPTIMIZATION
from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.optimization.engine.batch_norm import copy_statistics, restore_statistics
from hf_efficient.optimization.engine.perturbation import Weights, local
from hf_efficient.optimization.engine.watch import Remembered, Watch, generates, no_step_inside, refuse_optimizer
from hf_efficient.optimization.variants.variant import Ascent

from . import training_state
from .window import Inputs, Window

with extra("training"):
    from transformers import Trainer, TrainerCallback

logger = logging.get_logger(__name__)

_CARD_HEADING = "### Sharpness-aware minimization"

# For type checkers the mix-in is a Trainer; at run time any Trainer may follow it.
_AnyTrainer: Any = Trainer if TYPE_CHECKING else object


class SAMTrainerMixin(WholeCheckpoints, _AnyTrainer):
    """Goes before any Trainer: `class MyTrainer(SAMTrainerMixin, SFTTrainer)`, with `sam_args=SAMArguments(...)`.

    It works in `training_step` alone, which leaves the weights bit for bit as it found them: evaluation, saving,
    logging, generation, an exception or Ctrl-C never meet perturbed weights. With gradient accumulation the
    micro-batches of a step are collected and run together at its end, so that all of them stand at one point.

    A step whose loss or gradient is not finite is dropped: weights, optimizer state, what the variant remembers and
    BatchNorm statistics stay as they were. (With a GradScaler it is the scaler that drops it, and lowers its scale.)

    Training resumes from whole checkpoints alone, whatever a kill or a full disk left.

    Args:
        sam_args: the variant; without one, or with `method=None`, SAM.
        args, kwargs: the Trainer's own.
    """

    _own_method, _fixed_method = "sam", False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(SAMTrainerMixin)]
        if Trainer in before:
            others = [c for c in before if issubclass(c, Trainer) and not issubclass(c, SAMTrainerMixin)]
            order = f"class {cls.__name__}(SAMTrainerMixin, {others[0].__name__})"
            raise TypeError(f"{cls.__name__}: {others[0].__name__} stands before SAMTrainerMixin, which would not act. "
                            f"Write {order}.")  # fmt: skip

    def __init__(self, *args: Any, sam_args: SAMArguments | None = None, **kwargs: Any) -> None:
        given = SAMArguments() if sam_args is None else sam_args
        self.sam_args = given.for_trainer(self._own_method, self._fixed_method, type(self).__name__)
        self._ascent: Ascent | None = None
        self._ascent_of: object = None
        self._micro_batches: list[Inputs] = []
        self._collecting_for: tuple[int, int] | None = None
        self._diagnostics: dict[str, float] = {}
        self._stepping = _Stepping(self)
        super().__init__(*args, **kwargs)
        _refuse_what_cannot_work(self)
        _refuse_steps_inside_backward(self)
        self.add_callback(self._stepping)
        if self.sam_args.upcast:
            hold_in_float32(self.model)

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
        adaptive = arguments.adaptive or arguments.method == "asam"
        weights = Weights(model.parameters(), adaptive, active_only=not arguments.perturb_pruned)
        window = Window(self, parent, model, micro_batches, num_items, weights, arguments.batch_norm_pass,
                        arguments.probe_dropout)  # fmt: skip
        ascent, watch = self._current_ascent(), self._stepping.watch
        ascent.step = step
        self._stepping.begin(step, weights)
        rho = arguments.rho_at(step, self.state.max_steps)
        logged = arguments.diagnostics_steps > 0 and step % arguments.diagnostics_steps == 0
        statistics = copy_statistics(model)
        measure = logged or (weights.narrow and not watch.has_told("narrow"))
        with no_step_inside(weights), ascent.perturbed(weights, window, rho, measure):
            window.backward()
        if said := weights.swallowed():
            watch.once("narrow", f"{said} Use SAMArguments(upcast=True) with bf16=True or fp16=True, or a larger rho.")
        if not window.is_finite():
            self._drop(weights, statistics)
        else:
            watch.stepped(ascent, weights, window.norm or 0.0, rho)
            if logged:
                self._diagnostics = {"sam_rho": rho, "sam_gradient_norm": window.norm or 0.0}
                if weights.cosine is not None:
                    self._diagnostics |= {"sam_cosine": weights.cosine, "sam_distance": weights.distance}
        assert window.reported is not None
        return window.reported

    def _current_ascent(self) -> Ascent:
        if self._ascent is None or self._ascent_of is not self.state:  # a new training starts from nothing
            self._ascent, self._ascent_of = self.sam_args.ascent(lambda: self.optimizer), self.state
            self._stepping.remembered = Remembered()
        return self._ascent

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
        self._stepping.watch.once("dropped", dropped)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's own, with the diagnostics beside the training loss."""
        if "loss" in logs and self._diagnostics:
            logs = {**logs, **self._diagnostics}
            self._diagnostics = {}
        super().log(logs, *args, **kwargs)

    # What the variant remembers belongs to the training state: saved and loaded where the optimizer's is.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._ascent is not None and (self.args.should_save or training_state.is_sharded(self.model)):
            path = training_state.path_in(output_dir, self.model, self.args.process_index)
            training_state.save(path, self.model, self._ascent.memory, self.sam_args)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = training_state.path_in(checkpoint, self.model, self.args.process_index)
        if told := training_state.load(path, self.model, self._current_ascent().memory, self.sam_args):
            logger.warning(told)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's own card, with a section on the method and its arguments."""
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir) / "README.md"
        if not self.is_world_process_zero() or not path.exists():
            return
        card = ModelCard.load(path)
        if _CARD_HEADING not in card.text:
            card.text = card.text.rstrip() + "\n\n" + card_section(self.sam_args)
        card.data.tags = list(dict.fromkeys([*(card.data.tags or []), "hf_efficient", self.sam_args.method]))
        write_text(path, str(card))


class _Stepping(TrainerCallback):
    """Looks, before and after each step of the optimizer, whether it is one that the mix-in has prepared."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.watch = Watch(type(trainer).__name__, logger.warning)
        self.remembered = Remembered()
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
        if self.trainer._ascent is not None:
            self.remembered.before_step(self.trainer._ascent.memory)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.remembered.after_step()


def _refuse_what_cannot_work(trainer: Any) -> None:
    if trainer.is_deepspeed_enabled:
        raise ValueError("DeepSpeed keeps gradients where they cannot be read; use DDP or FSDP2.")
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
        raise ValueError('FSDP1 hides its parameters in flat pieces; use FSDP2: fsdp_config={"version": 2}, or DDP.')
    if generates(trainer):
        raise ValueError(
            f"{type(trainer).__name__} generates its data inside of the training step, where weights are perturbed; "
            "use it without SAMTrainerMixin."
        )


def _refuse_steps_inside_backward(trainer: Any) -> None:
    """By name, before anything is done; whatever else steps there is found in the first step."""
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    by_name = trainer.optimizer is None and getattr(trainer, "optimizer_cls_and_kwargs", None) is None
    if by_name and trainer.sam_args.rho > 0 and (name.endswith("_layerwise") or name in ("lomo", "adalomo")):
        other = name.removesuffix("_layerwise") if name.endswith("_layerwise") else "adafactor"
        raise ValueError(
            f"optim={name!r} steps inside of backward, where the weights are perturbed, and its step would be lost; "
            f'use optim="{other}".'
        )


def card_section(arguments: SAMArguments) -> str:
    """What a model card says about the method that trained the model."""
    defaults, method = SAMArguments().to_dict(), OPTIMIZATION.row(arguments.method or "sam")
    said = {k: v for k, v in arguments.to_dict().items() if k == "rho" or v != defaults[k]} | {"method": method.name}
    lines = [
        _CARD_HEADING,
        "",
        f"Trained with `hf_efficient` ({method.source}):",
        *(f"- {k}: {v}" for k, v in said.items()),
    ]
    return "\n".join(lines) + "\n"


def hold_in_float32(model: nn.Module) -> None:
    """Trainable 16-bit weights become float32 in place; autocast (`bf16=True`) still computes in 16 bits."""
    for p in model.parameters():
        if p.requires_grad and p.is_floating_point() and p.dtype.itemsize < 4:
            p.data = p.data.float()


class SAMTrainer(SAMTrainerMixin, Trainer):
    """`transformers.Trainer` with the variant that `sam_args` names."""


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
