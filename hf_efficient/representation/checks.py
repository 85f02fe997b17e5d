"""What `reduce_tokens` refuses before any work: shapes that do not fit, and values that mean nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_efficient.representation.maths.kernel import TokenKernel

from .config import TokenPrunerConfig

GROUPED = ("min_group_share", "merge_static")  # settings about the tiles or frames inside of a unit


def asked_of_groups(config: TokenPrunerConfig) -> list[str]:
    """The settings of `GROUPED` that are on."""
    return [name for name in GROUPED if getattr(config, name)]


def check_groups(config: TokenPrunerConfig, groups: Tensor | None) -> None:
    """Raise where settings about groups have no groups to act on."""
    for name in asked_of_groups(config) if groups is None else []:
        raise ValueError(
            f"{name}={getattr(config, name)} needs the `groups` argument, the tile or frame of every token; pass it, "
            f"or set {name}=0.0."
        )


def check_shapes(
    features: Tensor, importance: Tensor | None, query: Tensor | None, groups: Tensor | None, valid: Tensor | None
) -> Tensor | None:
    """Raise on shapes and dtypes that do not fit; `groups` comes back as (B, N)."""
    if features.dim() != 3 or not features.is_floating_point() or 0 in features.shape:
        raise ValueError(
            f"features of shape {tuple(features.shape)} and dtype {features.dtype}; expected floats (B, N, D). "
            "Add the batch dimension with features[None] for one unit."
        )
    batch, n, width = features.shape
    if importance is not None and (importance.shape != (batch, n) or not importance.is_floating_point()):
        raise ValueError(
            f"importance of shape {tuple(importance.shape)} and dtype {importance.dtype}; expected floats {(batch, n)}."
        )
    if query is not None and (
        query.dim() != 3 or query.shape[0] != batch or query.shape[2] != width or not query.shape[1]
    ):
        raise ValueError(f"query of shape {tuple(query.shape)}; expected ({batch}, T, {width}) with T >= 1.")
    if valid is not None and (valid.shape != (batch, n) or valid.dtype != torch.bool):
        raise ValueError(f"valid of shape {tuple(valid.shape)} and dtype {valid.dtype}; expected bool {(batch, n)}.")
    if groups is None:
        return None
    if groups.shape not in ((n,), (batch, n)) or groups.dtype != torch.long:
        raise ValueError(
            f"groups of shape {tuple(groups.shape)} and dtype {groups.dtype}; expected long {(n,)} or {(batch, n)}."
        )
    return groups.expand(batch, n)


def check_features(x: Tensor, kernel: TokenKernel) -> None:
    """Raise on features that are not finite; their kernel has looked at all of them already."""
    if not torch.isfinite(kernel.variance).all():
        raise ValueError(
            f"features hold NaN, infinite or huge values ({int((~torch.isfinite(x)).sum())} are not finite); expected "
            "magnitudes below 1e15. Check the vision model's output (overflow of a 16-bit dtype?)."
        )


def check_values(importance: Tensor | None, groups: Tensor | None, valid: Tensor | None, k: int) -> None:
    """Raise on values that would make the choice meaningless."""
    if importance is not None and not ((importance >= 0) & torch.isfinite(importance)).all():
        raise ValueError("importance holds negative, NaN or infinite values; expected finite values >= 0.")
    if groups is not None and (groups < 0).any():
        raise ValueError("groups holds negative numbers; expected the index of a tile or frame for every token.")
    if valid is not None and (valid.sum(1) < k).any():
        raise ValueError(
            f"A unit has {int(valid.sum(1).min())} valid tokens, fewer than the {k} to keep; lower the budget for it."
        )
