"""Two ways to the same greedy sequence for sum_i max_{j in S} W_ji + sum_{j in S} bonus_j, W >= 0.

The gain of a token j is sum_i relu(W_ji - c_i) + bonus_j, where c_i = max_{s in S} W_si is what is covered already.
Equal gains go to the lowest index.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .quota import Quota


def greedy_dense(matrix: Tensor, bonus: Tensor, k: int, quota: Quota | None = None) -> tuple[Tensor, Tensor]:
    """Every gain anew in every step: O(B·k·N²), a fixed row of kernels per step, nothing read back from the device.

    Args:
        matrix: (B, N, N) float32: W.
        bonus: (B, N) float32, -inf for tokens that must not be taken.
        k: tokens to take.
        quota: lower bounds per group, or None.

    Returns:
        Tokens (B, k) long, in the order taken, and c (B, N) after the last.
    """
    bonus, work = bonus.clone(), torch.empty_like(matrix)
    covered = torch.zeros_like(matrix[:, :1])
    order = []
    for _ in range(k):
        gain = torch.sub(matrix, covered, out=work).relu_().sum(-1) + bonus
        token = gain.argmax(1, keepdim=True)
        covered = torch.maximum(covered, _take(matrix, token))
        _bar(bonus, token, quota)
        order.append(token)
    return torch.cat(order, dim=1), covered.squeeze(1)


def greedy_lazy(
    rows: Callable[[Tensor], Tensor], bound: Tensor, bonus: Tensor, k: int, quota: Quota | None = None, width: int = 64
) -> tuple[Tensor, Tensor]:
    """The same sequence from few gains, since gains only fall as S grows (Minoux, 1978), a block of tokens at a time.

    The `width` tokens of largest known upper bound are held with their rows. The best of them is taken as long as it
    beats the largest bound outside; else bounds are updated and the block is chosen anew. Reads one flag per step back
    from the device, hence meant for the CPU, or for N too large to store W.

    Args:
        rows: tokens (B, M) long -> their rows of W, (B, M, N) float32.
        bound: (B, N) float32, upper bounds of all gains: the row sums of W + bonus.
        bonus: (B, N) float32, -inf for tokens that must not be taken.
        k: tokens to take.
        quota: lower bounds per group, or None.
        width: tokens in the block.

    Returns:
        Tokens (B, k) long, in the order taken, and c (B, N) after the last.
    """
    bonus, covered = bonus.clone(), torch.zeros_like(bound).unsqueeze(1)
    block, rival, rival_value = _strongest(bound, width)
    held = rows(block)
    work = torch.empty_like(held)
    order: list[Tensor] = []
    while len(order) < k:
        gain = torch.sub(held, covered, out=work).relu_().sum(-1).add_(bonus.gather(1, block))
        value, place = gain.max(1, keepdim=True)
        token = block.gather(1, place)
        # the first test is the usual case and cheap; the second gives equal gains to the lower index
        if (value <= rival_value).any() and ((value < rival_value) | ((value == rival_value) & (token > rival))).any():
            bound = bound.scatter(1, block, gain)
            block, rival, rival_value = _strongest(bound, width)
            held = rows(block)
            continue
        covered = torch.maximum(covered, _take(held, place))
        _bar(bonus, token, quota)
        order.append(token)
    return torch.cat(order, dim=1), covered.squeeze(1)


def _strongest(bound: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of largest bound (B, M), by rising index, and the strongest one outside (B, 1) with its bound."""
    n = bound.shape[1]
    # bits of floats >= 0 are ordered like the floats (and those of -inf below): equal bounds can be ranked by index
    key = (bound.view(torch.int32).long() << 32) - torch.arange(n, device=bound.device)
    if n <= width:
        everything = torch.arange(n, device=bound.device).expand_as(bound)
        return everything, everything[:, :1], torch.full_like(bound[:, :1], -torch.inf)
    token = key.topk(width + 1, dim=1).indices
    rival = token[:, width:]
    return token[:, :width].sort(dim=1).values, rival, bound.gather(1, rival)


def _take(rows: Tensor, place: Tensor) -> Tensor:
    """Row `place` (B, 1) of `rows` (B, M, N): (B, 1, N)."""
    return rows.gather(1, place.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _bar(bonus: Tensor, token: Tensor, quota: Quota | None) -> None:
    """Close the token (B, 1) just taken, and groups that the quota closes, in `bonus` (B, N), in place."""
    bonus.scatter_(1, token, -torch.inf)
    if quota is not None:
        quota.take(token)
        bonus.masked_fill_(quota.closed(), -torch.inf)
