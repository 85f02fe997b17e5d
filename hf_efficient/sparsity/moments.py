"""What an optimizer remembers of weights that died and of weights that just came alive."""

from __future__ import annotations

import torch
from torch import Tensor

# A zero second moment would make the first steps of a grown weight far too long (6 times at Adam's usual betas).
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, parameter: Tensor, slots: Tensor) -> None:
    """Let the optimizer take the weights in these slots for new ones.

    First moments become zero. Second moments become the mean of the weights that stay: a grown weight starts at the
    pace of its layer instead of with a burst, which is the warm-up that regrown weights need under Adam (SMET, 2026).

    Args:
        optimizer: any; its state tensors of the parameter's shape are what is touched.
        parameter: (k,).
        slots: (c,) int64.
    """
    if not len(slots):
        return
    stay = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device).index_fill_(0, slots, False)
    for name, moment in optimizer.state.get(parameter, {}).items():
        if isinstance(moment, Tensor) and moment.shape == parameter.shape:
            moment[slots] = moment[stay].mean() if name in SECOND_MOMENTS and bool(stay.any()) else 0.0
    if parameter.grad is not None:
        parameter.grad[slots] = 0.0  # methods that look back at the last gradient see none for a new weight


@torch.no_grad()
def resize(optimizer: torch.optim.Optimizer, parameter: Tensor, kept: Tensor, added: int) -> None:
    """Follow a parameter whose slots `kept` stay, in that order, and that has `added` new ones behind them."""
    state = optimizer.state.get(parameter, {})
    before = parameter.shape[0]
    for name, moment in state.items():
        if isinstance(moment, Tensor) and moment.dim() == 1 and len(moment) == before:
            fill = moment[kept].mean() if name in SECOND_MOMENTS and len(kept) else moment.new_zeros(())
            state[name] = torch.cat([moment[kept], fill.expand(added)])


@torch.no_grad()
def pace(optimizer: torch.optim.Optimizer, parameter: Tensor) -> float:
    """How far one unit of gradient moves a weight: lr, over mean sqrt(v) where the optimizer keeps a second moment v.

    What stands outside of the optimizer and shall move as fast as what is inside needs it.
    """
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    state = optimizer.state.get(parameter, {})
    for name in SECOND_MOMENTS:
        if isinstance(state.get(name), Tensor):
            root = float(state[name].sqrt().mean())
            if "betas" in group and "step" in state:
                root /= (1 - group["betas"][1] ** float(state["step"])) ** 0.5
            return float(group["lr"]) / max(root, 1e-12)
    return float(group["lr"])
