"""Random tokens: the baseline every method has to beat."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_efficient.representation.maths.steps import fixed_draw


def select(
    features: Tensor, importance: Tensor, k: int, config: Any = None, *, groups: Any = None, valid: Tensor | None = None
) -> Tensor:
    """The same draw for every unit of N tokens, without touching torch's global generator.

    Args:
        features: (B, N, D); only its shape counts.
        importance: unused.
        k: tokens to take.
        config: unused.
        groups: unused.
        valid: (B, N) bool or None; tokens marked False are never taken.

    Returns:
        (B, k) long, in the order taken.
    """
    order = fixed_draw(features.shape[1], features.device).expand(features.shape[0], -1)
    if valid is not None:
        barred = ~valid.gather(1, order)
        order = order.gather(1, barred.byte().sort(dim=1, stable=True).indices)
    return order[:, :k]
