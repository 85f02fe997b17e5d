"""Which entries of a parameter are active: the one fact that sparse training and sharpness-aware training share."""

from __future__ import annotations

import torch
from torch import Tensor

_ATTRIBUTE = "active_mask"


def set_active_mask(parameter: Tensor, mask: Tensor | None) -> None:
    """Declare which entries of a parameter are active; None withdraws the declaration (all are active).

    The mask is kept on the parameter and not copied. Its owner may change it in place; every reader sees the change.

    Args:
        parameter: any shape.
        mask: bool, of the same shape.

    Raises:
        ValueError: the mask is not bool or has another shape.
    """
    if mask is None:
        parameter.__dict__.pop(_ATTRIBUTE, None)
        return
    if mask.shape != parameter.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"An active mask is bool and has the shape of its parameter, {tuple(parameter.shape)}; "
            f"got {mask.dtype} {tuple(mask.shape)}."
        )
    setattr(parameter, _ATTRIBUTE, mask)


def active_mask(parameter: Tensor) -> Tensor | None:
    """The bool mask of the active entries, of the parameter's shape and on its device; None where all are active."""
    mask: Tensor | None = getattr(parameter, _ATTRIBUTE, None)
    if mask is not None and mask.device != parameter.device:
        mask = mask.to(parameter.device)
        setattr(parameter, _ATTRIBUTE, mask)
    return mask
