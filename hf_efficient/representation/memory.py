"""Pictures seen before need not be encoded again: chats over one picture, several budgets for the same pictures."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .families.family import Pictures


class PictureMemory:
    """What the vision encoder made of the latest calls, before anything is pruned.

    Args:
        size: calls that are remembered; the one not asked for longest goes first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: OrderedDict[bytes, tuple[Any, dict[str | None, Any]]] = OrderedDict()

    def recall(self, pictures: Pictures, source: str | None, look: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Encoder output (a copy to change) and scores of a call, from memory or by looking.

        Args:
            pictures: the call; remembered by the values of its arguments.
            source: where importance comes from; None where no scores are wanted, then any look at them serves.
            look: encodes.
        """
        key = key_of(pictures)
        output, scores = self.seen.get(key, (None, {}))
        if source not in scores:
            output, found = look()
            scores = {None: None, **scores, source: found}
            self.seen[key] = output, scores
            if len(self.seen) > self.size:
                self.seen.popitem(last=False)
        self.seen.move_to_end(key)
        return copy.copy(output), scores[source]


def key_of(pictures: Pictures) -> bytes:
    """A digest of everything that the encoder's output depends on."""
    digest = hashlib.blake2b(pictures.modality.encode(), digest_size=16)
    for name, value in sorted(pictures.arguments.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.digest()


@contextmanager
def remember_pictures(model: Any, size: int = 8) -> Iterator[None]:
    """Encode every picture once inside a `with` block, however often and with whatever token pruner it is shown.

    Prompts may differ, and so may budgets and methods. A picture is looked at again where scores are wanted that no
    look before has taken. What is remembered is what one call encodes, so that a picture is found again only with those
    that were encoded together with it. Weights of the encoder must not change meanwhile;
    nothing is remembered while gradients are on.

    Args:
        model: a model that has, or will have, a token pruner attached.
        size: calls to remember, >= 1.

    Raises:
        ValueError: `size` below 1.
    """
    if size < 1:
        raise ValueError(f"size={size} remembers nothing; expected at least 1.")
    base = model.base_model
    before = vars(base).get("picture_memory")
    base.picture_memory = PictureMemory(size)
    try:
        yield
    finally:
        if before is None:
            del base.picture_memory
        else:
            base.picture_memory = before
