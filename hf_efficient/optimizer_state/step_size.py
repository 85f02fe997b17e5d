"""How far an optimizer moves a weight for one unit of gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import quantized
from .roles import family, roles_of
from .structure import group_of, innermost, state_names

_BY_SIGN = ("lion", "rprop")  # a step has the same length whatever the gradient's


@torch.no_grad()
def effective_lr(optimizer: Any, parameter: Tensor) -> float:
    """How far one unit of gradient moves a weight in the last step, as a mean over the parameter.

    It is the learning rate, divided by the root of the second moment where the optimizer keeps one. A variable outside
    of the optimizer that shall move as fast as the weights uses it as its own learning rate.

    Args:
        optimizer: wrapped or not; one that `check` accepts.
        parameter: of the optimizer.

    Raises:
        ValueError: the optimizer is not known.
    """
    optimizer = innermost(optimizer)
    group, state = group_of(optimizer, parameter), optimizer.state.get(parameter, {})
    roles, lr = roles_of(optimizer), _rate(optimizer, group, state, parameter)
    by_role = {roles[name]: quantized.read(state, name) for name in state_names(optimizer, parameter)}
    # of two second moments the largest comes last
    if family(optimizer)[1].lower() in _BY_SIGN:
        step = float(by_role["rate"].mean()) if "rate" in by_role else lr
        return step / max(float(parameter.grad.abs().mean()), 1e-12) if parameter.grad is not None else step
    if "size" in by_role:
        return lr / max(float(by_role["size"].mean()), 1e-12)
    if "square" not in by_role:
        return lr
    root = float(by_role["square"].sqrt().mean())
    steps = _number(state.get("step", group.get("step", group.get("k", 0))))
    if len(group.get("betas", ())) > 1 and 0 < group["betas"][1] < 1 and steps and group.get("correct_bias", True):
        root /= (1 - group["betas"][1] ** steps) ** 0.5
    if family(optimizer) == ("torch", "RAdam"):
        trust = _rectification(group["betas"][1], steps)
        return lr * trust / max(root, 1e-12) if trust else lr
    if "delta" in by_role:
        lr *= float(by_role["delta"].sqrt().mean())
    return lr / max(root, 1e-12)


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
        size = float(parameter.detach().square().mean().sqrt())
        lr = max(group["eps"][1], size) * min(lr, _number(state["step"]) ** -0.5)
    if "lr_decay" in group and "step" in state:
        lr /= 1 + (_number(state["step"]) - 1) * group["lr_decay"]
    return lr


def _number(value: Any) -> float:
    return float(value)  # capturable optimizers keep learning rate and step as tensors
