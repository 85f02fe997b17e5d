"""What is known of a call travels with it: a model that many threads call holds nothing of any one of them.

Three carriers, by how far it has to go. Inside one call of Python: a context variable, of which every thread (and every
asyncio task) has its own. To the layers of the language model: an argument of theirs, so that a layer run again in the
backward pass sees the call it belongs to. To later calls that go on with the same cache: the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.vlm.kept import KeptUnit
from hf_efficient.representation.vlm.prompt import Prompt

from .layer_pruning import Drops, picked

#: the argument by which generate() hands its `Call` to its calls of forward
ARGUMENT = "token_pruner_call"


class Call:
    """One prompt, from its images to the last token that is generated after it.

    Attributes:
        prompt: ids and mask while images are encoded, for methods that look at the question.
        units: what was kept of the images this call encoded; None where it encoded none.
        read: whether the whole prompt is known already, as in generate(), whose calls of forward see parts of it.
        log_mass: (B, P) float32, log of what every token of the prompt stands for; None where each stands for itself.
        shift: (B, 1) long, how far positions run ahead of the cache (M-RoPE's `rope_deltas`); None where unknown.
        drops: what the layers of the language model drop of the prompt.
    """

    def __init__(self) -> None:
        self.prompt: Prompt | None = None
        self.units: list[KeptUnit] | None = None
        self.read = False
        self.log_mass: Tensor | None = None
        self.shift: Tensor | None = None
        self.drops: Drops | None = None

    def going_on(self) -> Call:
        """A call that goes on where this one stands, for what is read after it."""
        after = Call()
        after.log_mass, after.shift, after.drops = self.log_mass, self.shift, self.drops
        return after

    def picked(self, indices: Tensor, rows: int) -> Call:
        """A call that goes on with some of the rows that this one stands at, of which there are `rows`."""
        after = Call()
        after.log_mass = None if self.log_mass is None else picked(self.log_mass, indices, rows)
        after.shift = None if self.shift is None else picked(self.shift, indices, rows)
        after.drops = None if self.drops is None else self.drops.picked(indices, rows)
        return after


_UNDER_WAY: ContextVar[tuple[Any, Call] | None] = ContextVar("token_pruner_call", default=None)


@contextmanager
def under_way(base: Any, call: Call) -> Iterator[Call]:
    """Let whatever runs inside the block, in this thread, find the call of a (base) model."""
    token = _UNDER_WAY.set((base, call))
    try:
        yield call
    finally:
        _UNDER_WAY.reset(token)


def current(base: Any) -> Call | None:
    """The call of a (base) model that is under way in this thread."""
    found = _UNDER_WAY.get()
    return found[1] if found is not None and found[0] is base else None


@torch.compiler.disable
def log_mass_under_way() -> Tensor | None:
    """Sizes of the tokens of the call under way in this thread, for those who make masks."""
    found = _UNDER_WAY.get()
    return None if found is None else found[1].log_mass


class Latest:
    """What was kept latest: of this thread's calls, or of all where this thread has made none.

    Called when a call has ended well; a call that raises changes nothing.
    """

    def __init__(self) -> None:
        self.everywhere: dict[str, Any] = {}
        self.here = threading.local()

    def tell(self, call: Call) -> None:
        """Note a call that has ended."""
        for name, value in (("units", call.units), ("drops", call.drops)):
            if value is not None:
                self.everywhere[name] = value
                setattr(self.here, name, value)

    def ask(self, name: str, otherwise: Any) -> Any:
        """The latest `units` or `drops`."""
        return getattr(self.here, name, self.everywhere.get(name, otherwise))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy has been called by nobody

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
