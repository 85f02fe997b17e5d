"""Two ways to the same greedy sequence for sum_i max_{j in S} W_ji + sum_{j in S} bonus_j, W >= 0.

The gain of a token j is sum_i relu(W_ji - c_i) + bonus_j, where c_i = max_{s in S} W_si is what is covered already.
Equal gains go to the lowest index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .quota import Quota

Array = NDArray[Any]


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
        row = matrix.gather(1, token.unsqueeze(-1).expand(-1, -1, matrix.shape[-1]))
        covered = torch.maximum(covered, row)
        bonus.scatter_(1, token, -torch.inf)
        if quota is not None:
            quota.take(token)
            bonus.masked_fill_(quota.closed(), -torch.inf)
        order.append(token)
    return torch.cat(order, dim=1), covered.squeeze(1)


def greedy_lazy(
    rows: Callable[[Tensor], Tensor],
    gains: Callable[[Tensor | None], Tensor],
    bonus: Tensor,
    k: int,
    quota: Quota | None = None,
    width: int = 96,
) -> tuple[Tensor, Tensor]:
    """The same sequence from few gains, since gains only fall as S grows (Minoux, 1978), a block of tokens at a time.

    The `width` tokens of largest known upper bound are held with their rows. The best of them is taken as long as it
    beats the largest bound outside; else bounds are updated and the block is chosen anew. Bounds are gains of some
    earlier step; all are brought up to date once, after the first token, which changes them most.

    For the CPU, and for N too large to store W: numpy does the small steps, as starting torch operations costs more.

    Args:
        rows: tokens (B, M) long -> their rows of W, (B, M, N) float32.
        gains: c (B, N), or None for zeros -> all gains without bonus, (B, N) float32.
        bonus: as in `greedy_dense`.
        k: as there.
        quota: as there.
        width: tokens in the block.

    Returns:
        As there.
    """
    device, line, free = bonus.device, np.arange(len(bonus)), bonus.numpy(force=True).copy()
    covered = np.zeros_like(free)
    seen_covered = torch.from_numpy(covered)  # the same memory
    every_row = seen_covered.unsqueeze(1)
    order = np.empty((len(free), k), dtype=np.int64)
    step, fresh, block = 0, -1, None
    while step < k:
        if step < 2 and fresh < step:
            known = gains(seen_covered.to(device) if step else None)
            bounds, fresh, block = known.numpy(force=True) + free, step, None
        if block is None:
            block, rival, rival_bound = _strongest(bounds, width)
            held = rows(torch.from_numpy(block).to(device)).cpu()
            held_rows, work, extra = held.numpy(), torch.empty_like(held), free[line[:, None], block]
        gain = torch.sub(held, every_row, out=work).relu_().sum(-1).numpy()
        gain += extra
        best = gain.argmax(1)
        value, token = gain[line, best], block[line, best]
        beaten = value <= rival_bound  # seldom, hence looked at first
        if beaten.any() and (beaten & ((value < rival_bound) | (token > rival))).any():
            bounds[line[:, None], block] = gain
            block = None
            continue
        np.maximum(covered, held_rows[line, best], out=covered)
        order[:, step] = token
        extra[line, best] = free[line, token] = -np.inf
        if quota is not None:
            quota.take(torch.from_numpy(token).to(device).unsqueeze(1))
            free[quota.closed().numpy(force=True)] = -np.inf
            extra = free[line[:, None], block]
        step += 1
    return torch.from_numpy(order).to(device), torch.from_numpy(covered).to(device)


def _strongest(bounds: Array, width: int) -> tuple[Array, Array, Array]:
    """The tokens of largest bound (B, M), by rising index, and the strongest one outside (B,) with its bound."""
    batch, n = bounds.shape
    if n <= width:
        return np.arange(n)[None].repeat(batch, 0), np.zeros(batch, np.int64), np.full(batch, -np.inf, bounds.dtype)
    # bits of floats >= 0 are ordered like the floats (and those of -inf below): equal bounds can be ranked by index
    key = (bounds.view(np.int32).astype(np.int64) << 32) - np.arange(n)
    token = np.argpartition(key, n - width - 1, axis=1)[:, n - width - 1 :]  # the weakest of these comes first
    rival = token[:, 0]
    return np.sort(token[:, 1:], axis=1), rival, bounds[np.arange(batch), rival]
