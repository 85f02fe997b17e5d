"""What the optimizers of torch and others keep for each weight: one table, and how an optimizer is found in it."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer

# What a state tensor is (its role), and so what it becomes for a new weight:
# momentum   running mean of gradients or steps: 0
# square     running mean (or sum) of squares, which divides steps: the mean over the weights that stay. A zero would
#            make the first steps of a new weight far too long (six times at Adam's usual betas)
# size       the same of absolute values
# delta      running mean of squared steps, which multiplies them: the mean over those that stay
# value      a copy, or an average, of the weight itself: the weight
# rate       a step size for each weight: the group's learning rate
# rest       anything else that starts at 0
ROLES = ("momentum", "square", "size", "delta", "value", "rate", "rest")

_ADAM = {"exp_avg": "momentum", "exp_avg_sq": "square", "max_exp_avg_sq": "square"}
ADAFACTOR = {"exp_avg": "momentum", "exp_avg_sq": "square"}
_LION = {"exp_avg": "momentum"}
_EIGHT_BIT_ADAM = {"state1": "momentum", "state2": "square"}

#: (package, class that defines `step`; for bitsandbytes, its rule) -> name of a state tensor -> its role.
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
    ("transformers", "Adafactor"): ADAFACTOR,
    ("galore_torch", "AdamW"): _ADAM,
    ("galore_torch", "Adafactor"): ADAFACTOR,
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
    KNOWN[_step_owner(optimizer)] = roles


def family(optimizer: Optimizer) -> tuple[str, str]:
    """Package and class of the code that takes the steps; a subclass may inherit it."""
    package, name = _step_owner(type(optimizer))
    return package, str(optimizer.optimizer_name) if package == "bitsandbytes" else name  # type: ignore[attr-defined]


def _step_owner(cls: type[Optimizer]) -> tuple[str, str]:
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
        f"What {package}'s {name} keeps for each weight is not known. Known are {', '.join(known)}, and Adam, "
        "AdamW, AdEMAMix, SGD, Lion, RMSprop and Adagrad of bitsandbytes and torchao in all bits. For another one, say "
        "what its state is: hf_efficient.optimizer_state.declare(TheClass, exp_avg='momentum', exp_avg_sq='square')."
    )
