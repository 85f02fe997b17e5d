"""The same dropout masks in several passes over one batch, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_efficient.compat.torch import AnyBatchNorm


def random_state() -> list[Tensor]:
    """State of the generators that dropout draws from: the CPU's and the present CUDA device's."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states


def set_random_state(states: list[Tensor]) -> None:
    """Back to what `random_state` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Modules behave as in evaluation inside the block, but for BatchNorm, which normalizes as before."""
    training = [m for m in model.modules() if m.training and not isinstance(m, AnyBatchNorm)]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True
