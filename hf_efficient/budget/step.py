"""The second budget: what a training step takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient.budget.flops import count_flops
from hf_efficient.budget.memory import kept_for_backward, peak_bytes, tensors_in
from hf_efficient.budget.report import OptimizationBudget
from hf_efficient.budget.timing import seconds_of


def optimization_budget(trainer: Any, inputs: dict[str, Any], repeats: int) -> OptimizationBudget:
    """Measure steps of a Trainer on one batch: `training_step`, and its optimizer's step.

    Args:
        trainer: a Trainer that is not training; inside `as_it_was`.
        inputs: a batch with labels; its micro-batch of the step.
        repeats: steps that are timed.
    """
    model, device = trainer.model, next(trainer.model.parameters()).device

    def step() -> None:
        trainer.training_step(model, dict(inputs))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    with passes_counted(model) as passes:
        flops = count_flops(step, model).total
    counted = dict(passes)
    model.train()
    return OptimizationBudget(
        forward_passes=counted["forward"],
        backward_passes=counted["backward"],
        flops=flops,
        activation_bytes=kept_for_backward(model, lambda: model(**inputs)),
        peak_bytes=peak_bytes(step, device),
        seconds=seconds_of(step, device, repeats),
    )


@contextmanager
def passes_counted(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count calls of a model, and gradients that come back to what they returned, inside the block."""
    passes = {"forward": 0, "backward": 0}

    def after_forward(module: nn.Module, args: Any, output: Any) -> None:
        passes["forward"] += 1
        made = [t for t in tensors_in(_plain(output)) if t.requires_grad]
        if made:  # the loss where there is one: it comes first

            def came_back(gradient: Tensor) -> None:
                passes["backward"] += 1

            made[0].register_hook(came_back)

    handle = model.register_forward_hook(after_forward)
    try:
        yield passes
    finally:
        handle.remove()


def _plain(output: Any) -> Any:
    """A model's output as a list, its loss first."""
    return list(output.values()) if isinstance(output, dict) else output


@contextmanager
def as_it_was(trainer: Any) -> Iterator[None]:
    """Let a Trainer train inside the block; then weights, buffers, gradients, optimizer and random numbers come back.

    Holds a copy of weights and optimizer state meanwhile.
    """
    model: nn.Module = trainer.model
    tensors = [*model.parameters(), *model.buffers()]
    before = [t.detach().clone() for t in tensors]
    gradients = {p: p.grad for p in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    optimizer = trainer.optimizer
    state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            for p in gradients:
                p.grad = None
            if optimizer is None:
                trainer.create_optimizer()
            trainer.current_gradient_accumulation_steps = 1  # which train() sets, and training_step reads
            yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
        for p, gradient in gradients.items():
            p.grad = gradient
        for module, training in modes.items():
            module.training = training
        if optimizer is None:
            trainer.optimizer = None
        else:
            optimizer.load_state_dict(state)
