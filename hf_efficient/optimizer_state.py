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

from . import quantised_state as quantised

# What a state tensor is, and so what it becomes for a weight that is new:
# momentum   running mean of gradients or steps: 0
# square     running mean (or sum) of squares, which divides steps: the mean of the weights that stay. A zero would make
#            the first steps of a new weight far too long (six times at Adam's usual betas)
# size       the same of absolute values
# delta      running mean of squared steps, which multiplies them: the mean of those that stay
# value      a copy, or an average, of the weight itself: the weight
# rate       a step size of each weight's own: that of the group
# rest       anything else that starts at 0
ROLES = ("momentum", "square", "size", "delta", "value", "rate", "rest")
_AVERAGED = ("square", "size", "delta")

_ADAM = {"exp_avg": "momentum", "exp_avg_sq": "square", "max_exp_avg_sq": "square"}
_ADAFACTOR = {"exp_avg": "momentum", "exp_avg_sq": "square"}
_LION = {"exp_avg": "momentum"}
_EIGHT_BIT_ADAM = {"state1": "momentum", "state2": "square"}

#: (package, class that defines `step`; of bitsandbytes, its rule) -> name of a state tensor -> what it is.
KNOWN: dict[tuple[str, str], Mapping[str, str]] = {
    ("torch", "Adam"): _ADAM,
    ("torch", "AdamW"): _ADAM,
    ("torch", "NAdam"): _ADAM,
    ("torch", "RAdam"): _ADAM,
    ("torch", "Adamax"): {"exp_avg": "momentum", "exp_inf": "size"},
    ("torch", "SGD"): {"momentum_buffer": "momentum"},
    ("torch", "Muon"): {"momentum_buffer": "momentum"},
    ("torch", "RMSprop"): {"square_avg": "square", "momentum_buffer": "momentum", "grad_avg": "rest"},
    ("torch", "Adagrad"): {"sum": "square"},
    ("torch", "Adadelta"): {"square_avg": "square", "acc_delta": "delta"},
    ("torch", "ASGD"): {"ax": "value"},
    ("torch", "Rprop"): {"prev": "rest", "step_size": "rate"},
    ("torch", "Adafactor"): {"variance": "square"},
    ("transformers", "Adafactor"): _ADAFACTOR,
    ("galore_torch", "AdamW"): _ADAM,
    ("galore_torch", "Adafactor"): _ADAFACTOR,
    ("lion_pytorch", "Lion"): _LION,
    ("pytorch_optimizer", "Lion"): _LION,
    ("timm", "Lion"): _LION,
    ("schedulefree", "SGDScheduleFree"): {"z": "value"},
    ("schedulefree", "AdamWScheduleFree"): {"z": "value", "exp_avg_sq": "square"},
    ("schedulefree", "RAdamScheduleFree"): {"z": "value", "exp_avg_sq": "square"},
    ("torchao", "_AdamBase"): _ADAM,
    ("apex", "FusedAdam"): _ADAM,
    ("torchdistx", "AnyPrecisionAdamW"): {"exp_avg": "momentum", "exp_avg_sq": "square", "compensation": "rest"},
    ("galore_torch", "AdamW8bit"): _EIGHT_BIT_ADAM,
    ("bitsandbytes", "adam"): _EIGHT_BIT_ADAM,
    ("bitsandbytes", "ademamix"): _EIGHT_BIT_ADAM,
    ("bitsandbytes", "momentum"): {"state1": "momentum"},
    ("bitsandbytes", "lion"): {"state1": "momentum"},
    ("bitsandbytes", "rmsprop"): {"state1": "square"},
    ("bitsandbytes", "adagrad"): {"state1": "square"},
}
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


def declare(optimizer: type[Optimizer], **roles: str) -> None:
    """Say what an optimizer of your own keeps for each weight.

    `declare(Mine, exp_avg="momentum", exp_avg_sq="square")`

    Args:
        optimizer: the class that defines `step`.
        roles: name of a tensor in `optimizer.state[parameter]`, of the parameter's shape -> one of `ROLES`.

    Raises:
        ValueError: a role that is not known.
    """
    for name, role in roles.items():
        if role not in ROLES:
            raise ValueError(f"{name}={role!r} is not known; expected one of {', '.join(map(repr, ROLES))}.")
    KNOWN[_who_steps(optimizer)] = roles


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


def family(optimizer: Optimizer) -> tuple[str, str]:
    """Package and class of the code that takes the steps, which a subclass may have from what it stands on."""
    package, name = _who_steps(type(optimizer))
    return package, str(optimizer.optimizer_name) if package == "bitsandbytes" else name  # type: ignore[attr-defined]


def _who_steps(cls: type[Optimizer]) -> tuple[str, str]:
    step = cls.step  # torch wraps it for its hooks, and keeps its name
    return step.__module__.partition(".")[0], step.__qualname__.rpartition(".")[0].rpartition(".")[2]


def roles_of(optimizer: Optimizer) -> Mapping[str, str]:
    """Name of a state tensor -> one of `ROLES`, for an optimizer without wrappers.

    Raises:
        ValueError: the optimizer is not known.
    """
    package, name = family(optimizer)
    roles = KNOWN.get((package, name))
    if roles is not None:
        return roles
    known = sorted({other for _, other in KNOWN if other[0].isupper()})
    raise ValueError(
        f"What {package}'s {name} remembers of single weights is not known. Known are {', '.join(known)}, and Adam, "
        "AdamW, AdEMAMix, SGD, Lion, RMSprop and Adagrad of bitsandbytes and torchao in all bits. For another one say "
        "what its state is: hf_efficient.optimizer_state.declare(TheClass, exp_avg='momentum', exp_avg_sq='square')."
    )


@torch.no_grad()
def forget(optimizer: Any, parameter: Tensor, slots: Tensor) -> None:
    """Let the optimizer take the weights in these slots for new ones; what it remembers of all others stays.

    What each state tensor becomes there is written at `ROLES`: a new weight starts without momentum and at the pace of
    its layer, which is the warm-up that regrown weights need under Adam (SMET, 2026). 8-bit states are changed in the
    slots alone; only where a new value is larger than all of its block, the block is quantised anew.

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
        staying = quantised.read(state, name)[..., stay] if roles[name] in _AVERAGED else None
        start = _start(roles[name], staying, group_of(optimizer, parameter), parameter.detach()[slots])
        quantised.write(state, name, slots, start)
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
        moment = quantised.read(state, name)[..., kept]
        start = _start(roles[name], moment, group, parameter.new_zeros(added))
        fresh = start.to(moment).expand(*moment.shape[:-1], added)
        quantised.replace(state, name, torch.cat([moment, fresh], -1))


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
    kept = {name: (roles_of(optimizer)[name], quantised.read(state, name)) for name in _places_of(optimizer, parameter)}
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
    if roles is _ADAFACTOR:
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
        mean = quantised.read(state, name)
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
