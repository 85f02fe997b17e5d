"""Weights that move: what the optimizer remembers of them moves along.

An optimizer whose state is not understood is refused at the start: a moment that is mistaken for something else makes
steps ten times too long, in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_efficient.shards import Piece, local

from . import quantized
from .roles import family, roles_of
from .structure import group_of, innermost, state_names

_CODED = ("bitsandbytes", "torchao")  # packages
_AVERAGED = ("square", "size", "delta")  # roles whose mean a new weight starts with


def check(optimizer: Any, parameters: Iterable[Tensor]) -> None:
    """Refuse an optimizer whose state of these parameters cannot be changed entry by entry.

    Raises:
        ValueError: it is not known; or it projects, shares or keeps something unknown of one of the parameters; or one
            is sharded and its state would be in 8 bits.
    """
    optimizer = innermost(optimizer)
    try:
        roles = roles_of(optimizer)
    except ValueError as error:
        advice = "Or keep the topology fixed: topology='static' with init='random' or 'magnitude'."
        raise ValueError(f"{error} {advice}") from error
    for parameter in parameters:
        if "rank" in group_of(optimizer, parameter):
            raise ValueError(
                f"{type(optimizer).__name__} projects a parameter of shape {tuple(parameter.shape)} (its group has a "
                "rank), so that its state does not belong to single weights. Put the active weights (names that end in "
                "'.values') into a group without rank."
            )
        if isinstance(parameter, DTensor) and family(optimizer)[0] in _CODED:
            raise ValueError(
                f"{type(optimizer).__name__} keeps codes, of which FSDP2's pieces are not known. Use an optimizer of "
                "torch, or leave what trains whole: fully_shard(block, ignored_params=...)."
            )
        unknown = [name for name in state_names(optimizer, parameter) if name not in roles]
        if unknown:
            raise ValueError(
                f"{type(optimizer).__name__} keeps {unknown} for each weight, which is not known. Say what they are: "
                "hf_efficient.optimizer_state.declare(...)."
            )


@torch.no_grad()
def forget(optimizer: Any, parameter: Tensor, indices: Tensor) -> None:
    """Make the optimizer treat some weights as new; what it remembers of all others stays.

    `roles.ROLES` says what each state tensor becomes there. A new weight starts without momentum and at the effective
    learning rate of its layer: the warm-up that regrown weights need under Adam (SMET, 2026). 8-bit states change at
    these indices alone; only where a new value is larger than all of its block is the block quantized anew.

    Args:
        optimizer: one that `check` accepts.
        parameter: (k,), which already holds the first values of the new weights; where FSDP2 has cut it into pieces,
            all of its processes must call.
        indices: (c,) int64, of the new weights.
    """
    if not len(indices):
        return
    optimizer = innermost(optimizer)
    roles, state = roles_of(optimizer), optimizer.state.get(parameter, {})
    piece = Piece.of(parameter)
    _, at = piece.slots(indices)
    stay = torch.ones(piece.length, dtype=torch.bool, device=indices.device).index_fill_(0, at, False)
    for name in state_names(optimizer, parameter):
        here = {**state, name: local(state[name])}
        staying = quantized.read(here, name)[..., stay] if roles[name] in _AVERAGED else None
        if staying is not None and piece.group is not None:
            staying = piece.mean(staying).nan_to_num()[None].to(staying)
        start = _start(roles[name], staying, group_of(optimizer, parameter), local(parameter.detach())[at])
        quantized.write(here, name, at, start)
    if parameter.grad is not None:
        local(parameter.grad)[at] = 0.0  # methods that look back at the last gradient see none for a new weight


@torch.no_grad()
def resize(optimizer: Any, parameter: Tensor, kept: Tensor, added: int) -> None:
    """Resize the state with a parameter that loses some weights and gets new ones.

    Args:
        optimizer: one that `check` accepts.
        parameter: (k,), as it was before.
        kept: (r,) int64, indices of the weights that stay, in their new order.
        added: number of new weights, of value 0, behind them.
    """
    optimizer = innermost(optimizer)
    roles, state, group = roles_of(optimizer), optimizer.state.get(parameter, {}), group_of(optimizer, parameter)
    for name in state_names(optimizer, parameter):
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
    return torch.full((), float(group["lr"]) if role == "rate" else 0.0, device=values.device)
