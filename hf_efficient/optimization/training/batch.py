"""All micro-batches of one optimizer step of a Trainer, as a function of the weights, for a method to evaluate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hf_efficient.compat.trl import counters, set_counters
from hf_efficient.optimization.engine.batch_norm import copy_statistics, frozen_statistics, restore_statistics
from hf_efficient.optimization.engine.perturbation import Weights, global_norm
from hf_efficient.optimization.engine.randomness import random_state, set_random_state, without_dropout
from hf_efficient.optimization.engine.refusals import STEPS_INSIDE_BACKWARD
from hf_efficient.optimization.engine.variant import move_to_higher_loss

Inputs = dict[str, Any]


class AccumulatedBatch:
    """The `Batch` of a Trainer (engine/variant.py), cut into the micro-batches of gradient accumulation.

    Args:
        trainer: a `transformers.Trainer`.
        training_step: the parent's, with the model and the number of items bound: forward and backward of one
            micro-batch at the weights as they are.
        model: as the Trainer wrapped it.
        micro_batches: as the data loader made them.
        num_items: tokens or rows in the whole batch of all processes, as the Trainer counts them.
        weights: those of the model.
        batch_norm_pass, probe_dropout: see `SAMArguments`.
    """

    def __init__(
        self,
        trainer: Any,
        training_step: Callable[[Inputs], Tensor],
        model: nn.Module,
        micro_batches: list[Inputs],
        num_items: Any,
        weights: Weights,
        batch_norm_pass: str,
        probe_dropout: bool,
    ) -> None:
        self.trainer, self.training_step, self.model = trainer, training_step, model
        self.micro_batches, self.num_items, self.weights = micro_batches, num_items, weights
        self.batch_norm_pass, self.probe_dropout = batch_norm_pass, probe_dropout
        self.reported: Tensor | None = None  # the loss of the first pass, which is what the Trainer logs
        self._random_state = random_state()
        self._finite = True
        self.norm: float | None = None  # of the gradient of the step

    def backward(self, last: bool = True) -> Tensor:
        """Forward and backward of every micro-batch; gradients stay on the weights, reduced over all processes.

        Every pass over the batch starts from the same random state: all draw the same dropout masks, and after them
        the generator stands where one pass would have left it.
        """
        first = self.reported is None
        only = first and last
        gathers = only or self.batch_norm_pass == "both" or first == (self.batch_norm_pass == "first")
        set_random_state(self._random_state)
        loss = torch.zeros((), device=self.trainer.args.device)
        with self._metrics_counted_once(first), nullcontext() if gathers else frozen_statistics(self.model):
            for number, inputs in enumerate(self.micro_batches, start=1):
                synchronises = number == len(self.micro_batches)
                with nullcontext() if synchronises else self._no_sync():
                    loss = loss + self.training_step(dict(inputs))
        if not any(p.grad is not None for p in self.weights.parameters):
            raise ValueError(f"There is no gradient on any trainable weight after backward. {STEPS_INSIDE_BACKWARD}")
        if first:
            self.reported = loss.detach()
        return loss

    def gradient(self) -> dict[Tensor, Tensor]:
        """∇L at the weights as they are; none left on them."""
        self.backward(last=False)
        gradient = self.weights.take_gradients()
        if self._reused_buckets():
            gradient = {p: g.clone() for p, g in gradient.items()}
        self._finite &= global_norm(gradient) < float("inf")
        return gradient

    @torch.no_grad()
    def loss(self, fraction: float) -> float:
        """L at the weights as they are, on a share of every micro-batch, averaged over all processes."""
        set_random_state(self._random_state)
        total = torch.zeros((), device=self.trainer.args.device)
        self.model.train()
        masks = nullcontext() if self.probe_dropout else without_dropout(self.model)
        with self._metrics_counted_once(False), frozen_statistics(self.model), masks, self._losses_alone():
            for inputs in self.micro_batches:
                prepared = self.trainer._prepare_inputs(share(inputs, fraction))
                with self.trainer.compute_loss_context_manager():
                    loss = self.trainer.compute_loss(self.model, prepared, num_items_in_batch=self.num_items)
                total = total + loss.mean()  # not in place: a float64 loss keeps its digits
        cut_again(self.model)
        set_random_state(self._random_state)
        return float(self.trainer.accelerator.reduce(total, reduction="mean"))

    @contextmanager
    def at_higher_loss(self, mirror: Callable[[], None], fraction: float) -> Iterator[None]:
        """See `Batch`. A single micro-batch, evaluated whole and with the step's masks, needs one pass less.

        The Trainer's `training_step` then calls a `compute_loss` that compares both points before it returns.
        """
        sharded = any(isinstance(module, FSDPModule) for module in self.model.modules())
        if len(self.micro_batches) > 1 or fraction < 1 or not self.probe_dropout or sharded:
            move_to_higher_loss(self, mirror, fraction)
            yield
            return
        own = vars(self.trainer).get("compute_loss")  # a method, unless somebody has put a function there
        self.trainer.compute_loss = functools.partial(self._higher_loss, self.trainer.compute_loss, mirror)
        try:
            yield
        finally:
            del self.trainer.compute_loss
            if own is not None:
                self.trainer.compute_loss = own

    def _higher_loss(
        self,
        compute_loss: Callable[..., Tensor],
        mirror: Callable[[], None],
        model: nn.Module,
        inputs: Inputs,
        **kwargs: Any,
    ) -> Tensor:
        """The loss, with graph, at the higher of two points; the weights are then there."""
        state = random_state()

        def loss_here() -> Tensor:
            set_random_state(state)
            return compute_loss(model, dict(inputs), **kwargs)

        with torch.no_grad(), frozen_statistics(self.model), self._metrics_counted_once(False), self._losses_alone():
            mirror()
            there = loss_here().mean()
            mirror()
        statistics, metrics = copy_statistics(self.model), counters(self.trainer)
        loss = loss_here()
        if float(self.trainer.accelerator.reduce(there - loss.detach().mean(), reduction="mean")) > 0:
            del loss  # and its graph, before there is another
            restore_statistics(statistics)
            set_counters(self.trainer, metrics)
            mirror()
            loss = loss_here()
        return loss

    def kept_gradients(self) -> dict[Tensor, Tensor]:
        """The gradients, safe to keep until the next step; none if they or a loss are not finite."""
        if not self.is_finite():
            return {}
        gradients = self.weights.dense_gradients()
        return {p: g.clone() for p, g in gradients.items()} if self._reused_buckets() else gradients

    def is_finite(self) -> bool:
        """Whether all gradients and losses of the step are finite, on all processes."""
        if self.norm is None:
            self.norm = global_norm(self.weights.gradients())
            finite = torch.isfinite(self.reported).float() if self.reported is not None else torch.ones(())
            if self.trainer.accelerator.num_processes > 1:
                finite = self.trainer.accelerator.reduce(finite, reduction="mean")
            self._finite &= self.norm < float("inf") and float(finite) == 1.0
        return self._finite

    @contextmanager
    def _losses_alone(self) -> Iterator[None]:
        """No gradient may come out of the block."""
        before = len(self.weights.gradients())
        yield
        if len(self.weights.gradients()) != before:
            raise ValueError(
                "compute_loss runs backward itself, where only the loss is asked for: return the loss and leave "
                "backward to training_step, or use a method without probes, such as s2sam."
            )

    def _reused_buckets(self) -> bool:
        """Whether DDP writes the next gradients over these."""
        return bool(getattr(self.model, "gradient_as_bucket_view", False))

    def _no_sync(self) -> Any:
        trainer = self.trainer
        if isinstance(self.model, FSDPModule) and trainer.is_distributed_loading_by_transformers:
            return trainer._defer_fsdp_gradient_reduction()
        return trainer.accelerator.no_sync(self.model)

    @contextmanager
    def _metrics_counted_once(self, counts: bool) -> Iterator[None]:
        """TRL counts tokens and averages metrics inside `compute_loss`: further passes must not count."""
        saved = {} if counts else counters(self.trainer)
        try:
            yield
        finally:
            set_counters(self.trainer, saved)


def cut_again(model: nn.Module) -> None:
    """Let a model that FSDP2 shards gather its weights anew: a pass without backward leaves some gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def share(inputs: Inputs, fraction: float) -> Inputs:
    """The first `fraction` of the rows (at least one) of every tensor or list in a batch that has one entry per row."""
    rows = next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim), 1)
    kept = max(1, round(fraction * rows))

    def has_rows(value: Any) -> bool:
        whole = isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim > 0)
        return whole and len(value) == rows

    return {name: value[:kept] if has_rows(value) else value for name, value in inputs.items()}
