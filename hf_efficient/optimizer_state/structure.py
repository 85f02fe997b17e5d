"""Where things are in an optimizer: the one that takes the steps, a parameter's group, the state of single weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def innermost(optimizer: Any) -> Any:
    """The optimizer that takes the steps, inside accelerate's or Lightning's wrapper, or inside one of ours."""
    while True:
        inner = getattr(optimizer, "optimizer", None)
        if inner is None and isinstance(optimizer, Optimizer):
            inner = getattr(optimizer, "base", None)
        if not isinstance(inner, Optimizer):
            return optimizer
        optimizer = inner


def held_ids(optimizer: Optimizer) -> set[int]:
    """The id() of every parameter that an optimizer holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The parameter group that a parameter is in.

    Raises:
        ValueError: it is in none.
    """
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return group
    raise ValueError(
        f"{type(optimizer).__name__} does not hold a parameter of shape {tuple(parameter.shape)} that it is to train. "
        f"If it did at first: {EXCHANGED}"
    )


#: why an optimizer has other parameters than it was made with, and what to do
EXCHANGED = (
    "DeepSpeed's ZeRO gives an optimizer flat pieces in place of the model's parameters, where neither weights nor "
    "gradients can be told apart. Use DistributedDataParallel or FSDP2 (docs/distributed.md)."
)


def state_names(optimizer: Optimizer, parameter: Tensor) -> list[str]:
    """Names of the state tensors that have an entry for each weight of a parameter."""
    tables = ("qmap", "absmax")  # of 8-bit states; a parameter may happen to be as long
    return [
        name
        for name, moment in optimizer.state.get(parameter, {}).items()
        if isinstance(moment, Tensor) and moment.dim() and moment.shape[-parameter.dim() :] == parameter.shape
        if not name.startswith(tables) and name != "unorm_vec"
    ]
