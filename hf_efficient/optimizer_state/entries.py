"""What optimizers remember of each weight: read and changed in one place, for torch's own and for others' alike.

Whoever moves weights must move what the optimizer remembers of them, and an optimizer whose memory is not understood
must be refused at the start: a moment that is taken for something else makes steps ten times too long, in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import quantized
from .roles import ADAFACTOR, KNOWN, declare, family, roles_of

__all__ = [
    "KNOWN", "check", "declare", "family", "forget", "group_of", "innermost", "keeps_momentum", "momenta", "momentum",
    "pace", "resize", "roles_of",
]  # fmt: skip

_AVERAGED = ("square", "size", "delta")  # roles whose mean a new weight starts with
_BY_SIGN = ("lion", "rprop")  # a step has the same length whatever the gradient's


def innermost(optimizer: Any) -> Any:
    """The optimizer that takes the steps, inside accelerate's or Lightning's wrapper or a perturbing optimizer."""
    while True:
        inner = getattr(optimizer, "optimizer", None)
        if inner is None and isinstance(optimizer, Optimizer):
            inner = getattr(optimizer, "base", None)
        if not isinstance(inner, Optimizer):
            return optimizer
        optimizer = inner


def check(optimizer: Any, parameters: Iterable[Tensor]) -> None:
    """Refuse an optimizer whose state of these parameters could not be changed place by place.

    Raises:
        ValueError: it is not known; or it projects, shares or keeps something unknown of one of the parameters.
    """
    optimizer = innermost(optimizer)
    try:
        roles = roles_of(optimizer)
    except ValueError as error:
        advice = "Or let no weight change its place: topology='static' with init='random' or 'magnitude'."
        raise ValueError(f"{error} {advice}") from error
    for parameter in parameters:
        if "rank" in group_of(optimizer, parameter):
            raise ValueError(
                f"{type(optimizer).__name__} projects a parameter of shape {tuple(parameter.shape)} (its group has a "
                "rank), so that its state belongs to no single weight. Put the living weights (names that end in "
                "'.values') into a group without rank."
            )
        unknown = [name for name in _places_of(optimizer, parameter) if name not in roles]
        if unknown:
            raise ValueError(
                f"{type(optimizer).__name__} keeps {unknown} for each weight, which is not known. Say what they are: "
                "hf_efficient.optimizer_state.declare(...)."
            )


@torch.no_grad()
def forget(optimizer: Any, parameter: Tensor, slots: Tensor) -> None:
    """Let the optimizer take the weights in these slots for new ones; what it remembers of all others stays.

    What each state tensor becomes there is written at `optimizer_roles.ROLES`: a new weight starts without momentum and
    at the pace of its layer, which is the warm-up that regrown weights need under Adam (SMET, 2026). 8-bit states are
    changed in the slots alone; only where a new value is larger than all of its block, the block is quantised anew.

    Args:
        optimizer: one that `check` accepts.
        parameter: (k,), with the new weights' first values in it.
        slots: (c,) int64.
    """
    if not len(slots):
        return
    optimizer = innermost(optimizer)
    roles, state = roles_of(optimizer), optimizer.state.get(parameter, {})
    stay = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device).index_fill_(0, slots, False)
    for name in _places_of(optimizer, parameter):
        staying = quantized.read(state, name)[..., stay] if roles[name] in _AVERAGED else None
        start = _start(roles[name], staying, group_of(optimizer, parameter), parameter.detach()[slots])
        quantized.write(state, name, slots, start)
    if parameter.grad is not None:
        parameter.grad[slots] = 0.0  # methods that look back at the last gradient see none for a new weight


@torch.no_grad()
def resize(optimizer: Any, parameter: Tensor, kept: Tensor, added: int) -> None:
    """Follow a parameter whose slots `kept` stay, in that order, and that gets `added` new ones of value 0 behind them.

    Args:
        optimizer: one that `check` accepts.
        parameter: (k,), as it was before.
        kept: (r,) int64.
        added: number of new weights.
    """
    optimizer = innermost(optimizer)
    roles, state, group = roles_of(optimizer), optimizer.state.get(parameter, {}), group_of(optimizer, parameter)
    for name in _places_of(optimizer, parameter):
        moment = quantized.read(state, name)[..., kept]
        start = _start(roles[name], moment, group, parameter.new_zeros(added))
        fresh = start.to(moment).expand(*moment.shape[:-1], added)
        quantized.replace(state, name, torch.cat([moment, fresh], -1))


def _start(role: str, staying: Tensor | None, group: Mapping[str, Any], values: Tensor) -> Tensor:
    """What a new weight's state begins with: a scalar, (rows, 1) or (c,)."""
    if role in _AVERAGED and staying is not None and staying.numel():
        return staying.mean(-1, keepdim=staying.dim() > 1)
    if role == "value":
        return values
    return torch.full((), _number(group["lr"]) if role == "rate" else 0.0, device=values.device)


@torch.no_grad()
def pace(optimizer: Any, parameter: Tensor) -> float:
    """How far one unit of gradient moves a weight, in the mean: lr, over the root of a second moment where one is kept.

    What stands outside of the optimizer and shall move as fast as what is inside needs it.
    """
    optimizer = innermost(optimizer)
    group, state = group_of(optimizer, parameter), optimizer.state.get(parameter, {})
    kept = {name: (roles_of(optimizer)[name], quantized.read(state, name)) for name in _places_of(optimizer, parameter)}
    lr = _rate(optimizer, group, state, parameter)
    by_role = dict(kept.values())  # of two second moments the largest comes last
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


def keeps_momentum(optimizer: Any, group: Mapping[str, Any]) -> bool:
    """Whether the optimizer has a momentum, or will have one after a step, of the parameters of this group."""
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
def momentum(optimizer: Any, parameter: Tensor) -> Tensor | None:
    """The running mean of gradients (or steps) of a parameter, of its shape; None before its first step.

    8-bit momenta are given in float32, GaLore's is projected back, AdEMAMix's is the sum of both as its step has it.
    """
    return momenta(optimizer, [parameter]).get(parameter)


@torch.no_grad()
def momenta(optimizer: Any, parameters: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """`momentum` of each of the parameters that has one."""
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


def group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The parameter group that a parameter is in."""
    return next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))


def _places_of(optimizer: Optimizer, parameter: Tensor) -> list[str]:
    """Names of the state tensors that hold something for each weight of a parameter."""
    tables = ("qmap", "absmax")  # of 8-bit states; a parameter may happen to be as long
    return [
        name
        for name, moment in optimizer.state.get(parameter, {}).items()
        if isinstance(moment, Tensor) and moment.dim() and moment.shape[-parameter.dim() :] == parameter.shape
        if not name.startswith(tables) and name != "unorm_vec"
    ]


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
