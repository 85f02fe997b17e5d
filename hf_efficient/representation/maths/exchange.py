"""One more look at every token a greedy sequence took: exchanges that raise what greedy maximised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .greedy import greedy_dense


def exchange(
    rows: Callable[[Tensor], Tensor],
    gains: Callable[[Tensor], Tensor],
    bonus: Tensor,
    order: Tensor,
    passes: int = 1,
    groups: Tensor | None = None,
    owed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Passes over the kept tokens: each gives way to the token that adds most to the others, if that adds more.

    F(S) = sum_i max_{j in S} W_ji + sum_{j in S} bonus_j never falls, so greedy's bound of 1 - 1/e (1/2 with quotas)
    stays. Of equal gains the lowest index comes in, and none where the present one is as good. What the others cover is
    a running maximum from both sides, so that a token costs one look at all gains: O(B·passes·k·N²). A pass in which
    no token of the whole batch gives way is the last, as every other would be the same.

    Args:
        rows: tokens (B, M) long -> their rows of W, (B, M, N) float32, W >= 0.
        gains: c (B, N) -> sum_i relu(W_ji - c_i) of all tokens j, (B, N) float32.
        bonus: (B, N) float32, -inf for tokens that must not be taken.
        order: (B, k) long, distinct tokens.
        passes: how often all are looked at, at most.
        groups: (B, N) long or None: group of every token.
        owed: (B, G) float32 or None: tokens that every group has to keep; `order` holds as many.

    Returns:
        Tokens (B, k) long in greedy order among themselves, and max_{j in S} W_ji, (B, N) float32.
    """
    order, held, k = order.clone(), rows(order), order.shape[1]
    behind = torch.zeros_like(held)  # of place t: what the tokens after it cover
    for left in reversed(range(passes)):
        start = order.clone()
        behind[:, -1] = 0
        for t in range(k - 1, 0, -1):
            torch.maximum(behind[:, t], held[:, t], out=behind[:, t - 1])
        before = torch.zeros_like(held[:, 0])
        for t in range(k):
            present, others = order[:, t : t + 1], torch.cat([order[:, :t], order[:, t + 1 :]], dim=1)
            gain = (gains(torch.maximum(before, behind[:, t])) + bonus).scatter(1, others, -torch.inf)
            if groups is not None and owed is not None:
                gain = gain.masked_fill(_kept_out(groups, owed, present, others), -torch.inf)
            best = gain.argmax(1, keepdim=True)
            order[:, t : t + 1] = torch.where(gain.gather(1, best) > gain.gather(1, present), best, present)
            held[:, t] = rows(order[:, t : t + 1])[:, 0]
            before = torch.maximum(before, held[:, t])
        if left and torch.equal(order, start):
            break
    within, covered = greedy_dense(held, bonus.gather(1, order), k)
    return order.gather(1, within), covered


def _kept_out(groups: Tensor, owed: Tensor, present: Tensor, others: Tensor) -> Tensor:
    """(B, N) bool: tokens of other groups, where the others hold fewer of the present token's group than it is owed."""
    group = groups.gather(1, present)
    left = (groups.gather(1, others) == group).sum(1, keepdim=True)
    return (left < owed.gather(1, group)) & (groups != group)
