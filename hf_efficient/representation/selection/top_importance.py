"""The k most important tokens: stage I alone."""

from __future__ import annotations

from torch import Tensor


def select(
    features: Tensor,
    importance: Tensor,
    k: int,
    config: object = None,
    *,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Tokens by falling importance; equal ones by rising index.

    Args:
        features: (B, N, D), unused.
        importance: (B, N) float32.
        k: tokens to take.
        config: unused.
        groups: unused.
        valid: (B, N) bool or None; tokens marked False are never taken.

    Returns:
        (B, k) long, in the order taken.
    """
    if valid is not None:
        importance = importance.masked_fill(~valid, -1)
    return importance.sort(dim=1, descending=True, stable=True).indices[:, :k]
