"""The momentum that an optimizer keeps of a parameter, under whatever name and in whatever form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import quantized
from .roles import ADAFACTOR, roles_of
from .structure import group_of, innermost


def keeps_momentum(optimizer: Any, group: Mapping[str, Any]) -> bool:
    """Whether the optimizer has a momentum, or will have one after a step, of the parameters of this group.

    Raises:
        ValueError: the optimizer is not known.
    """
    optimizer = innermost(optimizer)
    roles = roles_of(optimizer)
    if "momentum" not in roles.values():
        return False
    if "momentum_buffer" in roles:
        return bool(group.get("momentum"))
    if roles is ADAFACTOR:
        return group.get("beta1") is not None
    return bool(group["betas"][0]) if "betas" in group else True


@torch.no_grad()
def momenta(optimizer: Any, parameters: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """The running mean of gradients (or of steps) of each parameter that has one.

    Args:
        optimizer: wrapped or not.
        parameters: of the optimizer.

    Returns:
        Parameter -> its momentum, of its shape; a parameter has none before its first step. 8-bit momenta are decoded
        to float32, GaLore's is projected back, AdEMAMix's is the sum of both as its step has it.

    Raises:
        ValueError: the optimizer is not known.
    """
    optimizer = innermost(optimizer)
    names = [name for name, role in roles_of(optimizer).items() if role == "momentum"]
    found = {p: _momentum(optimizer, p, names) for p in parameters if p in optimizer.state}
    return {p: mean for p, mean in found.items() if mean is not None}


def _momentum(optimizer: Any, parameter: Tensor, names: Iterable[str]) -> Tensor | None:
    state = optimizer.state[parameter]
    for name in names:
        if not isinstance(state.get(name), Tensor):
            continue
        mean = quantized.read(state, name)
        if "projector" in state:
            mean = state["projector"].project_back(mean)
        if mean.dim() > parameter.dim():
            group = group_of(optimizer, parameter)
            mean = mean[0] + group["alpha"] * mean[1]
        return mean
    return None
