"""The second budget: what a training step takes."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_efficient.budget.flops import count_flops
from hf_efficient.budget.memory import device_of, kept_for_backward, peak_bytes, tensors_in
from hf_efficient.budget.report import OptimizationBudget
from hf_efficient.budget.timing import seconds_of
from hf_efficient.modes import modes_kept

RECOMPUTES = "gradient_checkpointing"  # what a module of transformers knows it by


def optimization_budget(trainer: Any, inputs: dict[str, Any], repeats: int) -> OptimizationBudget:
    """Measure steps of a Trainer on one batch: `training_step`, and its optimizer's step.

    Where steps differ by a rule (LookSAM), a whole period of them is run: the peak is the largest, the rest the mean.

    Args:
        trainer: a Trainer that is not training; inside `as_it_was`.
        inputs: a batch with labels; its micro-batch of the step.
        repeats: steps that are timed.
    """
    model, device = trainer.model, device_of(trainer.model)
    period, first = getattr(trainer, "step_period", 1), trainer.state.global_step

    def steps() -> None:
        for number in range(first, first + period):
            trainer.state.global_step = number
            trainer.training_step(model, dict(inputs))
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

    def each(total: int) -> int | float:
        return total / period if total % period else total // period

    try:
        with as_in_training(trainer):
            with passes_counted(model) as passes:
                flops = count_flops(steps, model).total
            model.train()
            return OptimizationBudget(
                forward_passes=each(passes["forward"]),
                backward_passes=each(passes["backward"]),
                flops=round(flops / period),
                activation_bytes=kept_for_backward(model, lambda: model(**inputs)),
                peak_bytes=peak_bytes(steps, device),
                seconds=seconds_of(steps, device, repeats) / period,
            )
    finally:
        trainer.state.global_step = first


@contextmanager
def as_in_training(trainer: Any) -> Iterator[None]:
    """The model casts to 16 bits and recomputes activations if its Trainer says so, which `train` only turns on."""
    model, args = trainer.model, trainer.args
    forward, own = model.forward, vars(model).get("forward")

    @functools.wraps(forward)
    def cast(*given: Any, **named: Any) -> Any:
        with trainer.accelerator.autocast():
            return forward(*given, **named)

    recompute = args.gradient_checkpointing and not any(getattr(m, RECOMPUTES, False) for m in model.modules())
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    model.forward = cast
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own
        if recompute:
            model.gradient_checkpointing_disable()


@contextmanager
def passes_counted(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count calls of a model, and gradients that come back to what they returned, inside the block."""
    passes = {"forward": 0, "backward": 0}

    def after_forward(module: nn.Module, args: Any, output: Any) -> None:
        passes["forward"] += 1
        made = [t for t in tensors_in(output) if t.requires_grad]
        if made:  # the loss where there is one: it comes first

            def came_back(gradient: Tensor) -> None:
                passes["backward"] += 1

            made[0].register_hook(came_back)

    handle = model.register_forward_hook(after_forward)
    try:
        yield passes
    finally:
        handle.remove()


@contextmanager
def random_numbers_kept(model: nn.Module) -> Iterator[None]:
    """The program's random numbers are after the block as before: of torch, numpy and Python."""
    devices = sorted({t.device.index or 0 for t in [*model.parameters(), *model.buffers()] if t.device.type == "cuda"})
    plain, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)


@contextmanager
def as_it_was(trainer: Any) -> Iterator[None]:
    """Let a Trainer train inside the block; then weights, buffers, gradients, optimizer and random numbers come back.

    Holds a copy of weights and optimizer state meanwhile.
    """
    model: nn.Module = trainer.model
    tensors = [*model.parameters(), *model.buffers()]
    before = [t.detach().clone() for t in tensors]
    gradients = {p: p.grad for p in model.parameters()}
    optimizer, attributes, synced = trainer.optimizer, dict(vars(trainer)), trainer.accelerator.sync_gradients
    state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
    memory = getattr(trainer, "memory_kept", nullcontext)  # of a sharpness-aware one
    try:
        with random_numbers_kept(model), modes_kept(model), memory():
            for p in gradients:
                p.grad = None
            if optimizer is None:
                trainer.create_optimizer()
            trainer.accelerator.sync_gradients = True  # the only micro-batch of a step, also in the middle of one
            trainer.current_gradient_accumulation_steps = 1  # which train() sets, and training_step reads
            yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
        for p, gradient in gradients.items():
            p.grad = gradient
        trainer.accelerator.sync_gradients = synced
        vars(trainer).clear()
        vars(trainer).update(attributes)
        if optimizer is not None:
            restore(optimizer, state)


def restore(optimizer: Any, state: Any) -> None:
    """Load the state of an optimizer, each tensor in its dtype: `load_state_dict` casts them to that of the weight."""
    optimizer.load_state_dict(copy.deepcopy(state))
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for place, values in state["state"].items():
        own = optimizer.state.get(weights[place]) if isinstance(place, int) else None
        if isinstance(own, dict):
            own.update({name: v.to(own[name].device) for name, v in values.items() if isinstance(v, Tensor)})
