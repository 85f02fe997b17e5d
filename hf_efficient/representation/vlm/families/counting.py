"""Of pictures of shapes not met before an encoder has to say how many tokens they make: its answer serves the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .family import VisualInputs, encoded

#: of the call under way in this thread: what was encoded, whether gradients were on, and what came out
_HELD: ContextVar[list[tuple[VisualInputs, bool, Any]] | None] = ContextVar("token_pruner_counted", default=None)


@contextmanager
def encoding_once() -> Iterator[None]:
    """Inside, what `counted` has encoded is held for `taken`; afterwards it is forgotten. Blocks may be nested."""
    if _HELD.get() is not None:
        yield
        return
    token = _HELD.set([])
    try:
        yield
    finally:
        _HELD.reset(token)


def counted(images: VisualInputs) -> Any:
    """What the stock feature function returns; outside of `encoding_once` without gradients, as only counts matter."""
    held = _HELD.get()
    if held is None:
        with torch.no_grad():
            return encoded(images)
    output = encoded(images)
    held.append((images, torch.is_grad_enabled(), output))
    return output


def taken(images: VisualInputs) -> Any:
    """What was `counted` of this same call, which may be changed and is not there again; None if nothing was."""
    held = _HELD.get() or []
    for place, (other, graded, output) in enumerate(held):
        if graded == torch.is_grad_enabled() and _same(images, other):
            del held[place]
            return output
    return None


def _same(one: VisualInputs, other: VisualInputs) -> bool:
    """Whether two calls are given the very same tensors, and equal values besides."""
    if one.base is not other.base or one.modality != other.modality:
        return False
    given, before = ({k: v for k, v in images.arguments.items() if v is not None} for images in (one, other))
    return given.keys() == before.keys() and all(_equal(given[name], before[name]) for name in given)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return not any(isinstance(value, (Tensor, list, tuple)) for value in (one, other)) and bool(one == other)
