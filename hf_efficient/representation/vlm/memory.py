"""Images seen before need not be encoded again: chats over one image, several budgets for the same images."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.vlm.families.family import VisualInputs
from hf_efficient.wrapped import unwrapped


class Seen:
    """What was made of one call: the encoder's output, and scores by where they come from."""

    def __init__(self) -> None:
        self.looking = threading.Lock()
        self.output: Any = None
        self.scores: dict[str | None, Any] = {}


class ImageMemory:
    """What the vision encoder made of the latest calls, before anything is pruned; one for all threads.

    A thread that asks for images another one is just looking at waits for that look.

    Args:
        size: calls that are remembered; the one not asked for longest goes first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.order = threading.Lock()
        self.seen: OrderedDict[bytes, Seen] = OrderedDict()

    def recall(self, images: VisualInputs, source: str | None, look: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Encoder output (a copy to change) and scores of a call, from memory or by looking.

        Args:
            images: the call; remembered by the values of its arguments.
            source: where importance comes from; None where no scores are wanted, then any look at them serves.
            look: encodes.
        """
        key = key_of(images)
        with self.order:
            entry = self.seen.setdefault(key, Seen())
            self.seen.move_to_end(key)
        try:
            with entry.looking:
                if source not in entry.scores:
                    output, found = look()
                    entry.output, entry.scores = output, {None: None, **entry.scores, source: found}
                return copy.copy(entry.output), entry.scores[source]
        finally:
            self._tidy(key, entry)

    def _tidy(self, key: bytes, entry: Seen) -> None:
        """Forget an entry that nothing came of, and those beyond `size`."""
        with self.order:
            if not entry.scores and self.seen.get(key) is entry:
                del self.seen[key]
            while len(self.seen) > self.size:
                self.seen.popitem(last=False)


def key_of(images: VisualInputs) -> bytes:
    """A digest of everything that the encoder's output depends on."""
    digest = hashlib.blake2b(images.modality.encode(), digest_size=16)
    for name, value in sorted(images.arguments.items()):
        digest.update(name.encode())
        _digest(digest, value)
    return digest.digest()


def _digest(digest: Any, value: Any) -> None:
    """Add a value, and what it holds if it is a list, to a digest."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {value.device} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    elif isinstance(value, (list, tuple)):  # whose repr leaves out most of a large tensor
        digest.update(f"{type(value).__name__} of {len(value)}".encode())
        for one in value:
            _digest(digest, one)
    else:
        digest.update(repr(value).encode())


@contextmanager
def remember_images(model: Any, size: int = 8) -> Iterator[None]:
    """Encode every image once inside a `with` block, however often and with whatever token pruner it is shown.

    Holds for calls from any thread. Prompts may differ, and so may budgets and methods. An image is looked at again
    where scores are wanted that no look before has taken. What is remembered is what one call encodes, so that an
    image is found again only with those that were encoded together with it. Weights of the encoder must not change
    meanwhile; nothing is remembered while gradients are on.

    Args:
        model: a model that has, or will have, a token pruner attached.
        size: calls to remember, >= 1.

    Raises:
        ValueError: `size` below 1.
    """
    if size < 1:
        raise ValueError(f"size={size} remembers nothing; expected at least 1.")
    base, memory = unwrapped(model).base_model, ImageMemory(size)
    with _OPENING:
        base.image_memories = (*vars(base).get("image_memories", ()), memory)
    try:
        yield
    finally:
        with _OPENING:
            rest = tuple(one for one in base.image_memories if one is not memory)
            base.image_memories = rest
            if not rest:
                del base.image_memories


def memory_of(base: Any) -> ImageMemory | None:
    """The memory of the innermost block that is open; none while gradients are on."""
    memories: tuple[ImageMemory, ...] = () if torch.is_grad_enabled() else vars(base).get("image_memories", ())
    return memories[-1] if memories else None


_OPENING = threading.Lock()  # blocks of several threads may overlap, and end in any order
