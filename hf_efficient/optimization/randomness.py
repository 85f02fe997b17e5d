"""The same dropout masks in several passes over one batch."""

from __future__ import annotations

import torch
from torch import Tensor


def random_state() -> list[Tensor]:
    """State of the generators that dropout draws from: the CPU's and the present CUDA device's."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states


def set_random_state(states: list[Tensor]) -> None:
    """Back to what `random_state` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
