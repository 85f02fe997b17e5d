"""Running statistics of BatchNorm, which a perturbed forward pass would distort."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from hf_efficient.compat.torch import AnyBatchNorm
from hf_efficient.modes import evaluating


def batch_norms(model: nn.Module) -> list[AnyBatchNorm]:
    """The BatchNorm layers of a model that gather running statistics."""
    return [m for m in model.modules() if isinstance(m, AnyBatchNorm) and m.running_mean is not None]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Forward passes inside the block normalize as in training but leave the running statistics alone."""
    gathering = [m for m in batch_norms(model) if m.track_running_stats]
    for m in gathering:
        m.track_running_stats = False  # in training mode this is all that the flag does
    try:
        yield
    finally:
        for m in gathering:
            m.track_running_stats = True


@contextmanager
def all_statistics_frozen() -> Iterator[None]:
    """As `frozen_statistics`, for any model that is called inside the block."""
    frozen: list[AnyBatchNorm] = []

    def freeze(module: nn.Module, _: object) -> None:
        # Layers inside a compiled model call no hook. By name: the class costs seconds to import.
        for m in module.modules() if type(module).__name__ == "OptimizedModule" else (module,):
            if isinstance(m, AnyBatchNorm) and m.track_running_stats:
                m.track_running_stats = False
                frozen.append(m)

    hook = register_module_forward_pre_hook(freeze)
    try:
        yield
    finally:
        hook.remove()
        for m in frozen:
            m.track_running_stats = True


def copy_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The buffers of all BatchNorm layers, each with a copy of what it holds now."""
    return [(buffer, buffer.clone()) for m in batch_norms(model) for buffer in m.buffers()]


@torch.no_grad()
def restore_statistics(copied: list[tuple[Tensor, Tensor]]) -> None:
    """Back to what `copy_statistics` returned."""
    for buffer, before in copied:
        buffer.copy_(before)


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> None:
    """Compute the running statistics again, at the current weights.

    For after training with S2-SAM, before evaluation or saving: its one forward pass runs at perturbed weights.

    Args:
        model: any; one without BatchNorm is left alone. Its training mode is kept.
        batches: model inputs: mappings are passed as keyword arguments, anything else as one argument. The statistics
            become the mean over these batches, each counting the same. About 20 training batches are enough.

    Raises:
        ValueError: there is a BatchNorm layer but no batch.
    """
    layers = batch_norms(model)
    if not layers:
        return
    momenta = [m.momentum for m in layers]
    seen = 0
    with evaluating(model):
        for m in layers:
            m.reset_running_stats()
            m.momentum = None  # a cumulative mean
            m.train()
        try:
            for batch in batches:
                seen += 1
                model(**batch) if isinstance(batch, Mapping) else model(batch)
        finally:
            for m, momentum in zip(layers, momenta, strict=True):
                m.momentum = momentum
    if not seen:
        raise ValueError("No batch to gather BatchNorm statistics from; pass some batches of training data.")
