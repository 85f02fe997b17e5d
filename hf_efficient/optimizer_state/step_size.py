"""How far an optimizer moves a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_efficient.shards import whole

from . import quantized
from .roles import family, roles_of
from .structure import group_of, innermost, state_names

LONGEST = 1000  # steps that a gradient is counted for under a momentum that hardly forgets, or never
#: Those that add weight decay to the gradient before they divide it by its size, unless told to decouple it.
_COUPLED = {("torch", name) for name in ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop")}
_BY_SIGN = ("lion", "rprop")  # a step has the same length whatever the gradient's


class Pace(NamedTuple):
    """How far an optimizer carries a weight in one step, in the long run: with all that its momentum adds later.

    Args:
        rate: the distance, in units of the gradient; with `by_size`, of the gradient's root mean square over the steps.
            Negative where the optimizer maximizes.
        by_size: whether the optimizer divides a weight's gradient by its size (Adam and its kin, Lion by its sign).
        decay: share of itself that a weight loses.
        coupled: with `by_size`, share of the weight that is added to its gradient first.
    """

    rate: float
    by_size: bool
    decay: float
    coupled: float = 0.0


@torch.no_grad()
def pace(optimizer: Any, parameter: Tensor) -> Pace:
    """How fast the last step moved a parameter's weights: for variables outside that shall move as these do.

    Args:
        optimizer: wrapped or not; one that `check` accepts.
        parameter: of the optimizer.

    Raises:
        ValueError: the optimizer is not known.
    """
    optimizer = innermost(optimizer)
    group, state = group_of(optimizer, parameter), optimizer.state.get(parameter, {})
    roles, kind = roles_of(optimizer), family(optimizer)
    lr = _rate(optimizer, group, state, parameter)
    weight_decay = _number(group.get("weight_decay") or 0.0)
    decay = lr * weight_decay
    held = {roles[name]: name for name in state_names(optimizer, parameter)}
    sign = -1.0 if group.get("maximize") else 1.0
    if "rate" in held:
        return Pace(sign * float(whole(quantized.read(state, held["rate"])).mean()), True, decay)
    repeats = _steps_of_a_gradient(kind, group, roles)
    lr *= sign * repeats
    if kind[1].lower() in _BY_SIGN:
        return Pace(lr, True, decay)
    if "square" not in held and "size" not in held:
        return Pace(lr, False, decay * repeats)
    steps = _number(state.get("step", group.get("step", group.get("k", 0))))
    trust = _rectification(group["betas"][1], steps) if kind == ("torch", "RAdam") else 1.0
    if not trust:
        return Pace(lr, False, decay)
    lr *= trust
    if "delta" in held:
        lr *= float(whole(quantized.read(state, held["delta"])).sqrt().mean())
    if kind[1].lower() == "adagrad":  # it divides by the root of a sum over the steps, not of a mean
        lr /= max(steps, 1.0) ** 0.5
    if kind in _COUPLED and not group.get("decoupled_weight_decay"):
        return Pace(lr, True, 0.0, sign * weight_decay)
    return Pace(lr, True, decay)


def _steps_of_a_gradient(kind: tuple[str, str], group: Mapping[str, Any], roles: Mapping[str, str]) -> float:
    """How often a momentum that is a sum, not a mean, takes a gradient's step."""
    if "momentum_buffer" in roles:
        momentum, dampening = group.get("momentum", 0.0), group.get("dampening", 0.0)
    elif kind == ("bitsandbytes", "momentum"):
        momentum, dampening = group["betas"][0], 0.0
    else:
        return 1.0
    return (1 - _number(dampening)) / max(1 - _number(momentum), 1 / LONGEST)


def _rectification(beta: float, steps: float) -> float:
    """r_t of RAdam (Liu et al., 2020); 0 while steps are not divided by the root of v."""
    limit = 2 / (1 - beta) - 1
    length = limit - 2 * steps * beta**steps / (1 - beta**steps)
    if length <= 5:
        return 0.0
    return float(((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)) ** 0.5)


def _rate(optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor) -> float:
    """The learning rate that the last step had."""
    if hasattr(optimizer, "_get_lr"):  # transformers' Adafactor has its own schedule
        return float(optimizer._get_lr(group, state)) if "step" in state else 0.0
    lr = _number(group.get("scheduled_lr") or group["lr"])
    if "beta2_decay" in group and "step" in state:  # torch's Adafactor: relative to the weights
        size = float(whole(parameter.detach()).square().mean().sqrt())
        lr = max(group["eps"][1], size) * min(lr, _number(state["step"]) ** -0.5)
    if "lr_decay" in group and "step" in state:
        lr /= 1 + (_number(state["step"]) - 1) * group["lr_decay"]
    return lr


def _number(value: Any) -> float:
    return float(value)  # capturable optimizers keep learning rate and step as tensors
