"""Whole numbers as few bytes: adaptive range coding (by the constriction library).

Each class of numbers has its own counts, which coder and decoder update alike after every number, so that no table is
sent. Before the first number they follow 1/(1 + |q|)².
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_efficient.extras import extra

MOST = 127  # numbers run from -MOST to MOST
_PRIOR = 1 / (1 + np.abs(np.arange(-MOST, MOST + 1.0))) ** 2
_EVEN = np.array([0.5, 0.5])  # whether a tensor has any number but zero


def _stream() -> Any:
    with extra("video"):  # here: networks that are sent whole do not need it
        from constriction import stream
    return stream


def _categorical(probabilities: np.ndarray) -> Any:
    return _stream().model.Categorical(probabilities, perfect=False)


class Counts:
    """How often each number was seen."""

    def __init__(self) -> None:
        self._counts = _PRIOR.copy()

    def model(self) -> Any:
        """The distribution of the next number."""
        return _categorical(self._counts / self._counts.sum())

    def add(self, index: int) -> None:
        """Count a number, by its index in the alphabet."""
        self._counts[index] += 1


def encode_levels(parts: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """Code the numbers of several tensors, one after the other.

    Args:
        parts: for each tensor its class and its numbers, whole ones from -MOST to MOST of any shape. A tensor of zeros
            alone costs one bit.

    Returns:
        The bytes; none if all numbers are zero.

    Raises:
        ValueError: a number is out of range.
    """
    if not any(levels.any() for _, levels in parts):
        return b""
    coder, flag, counts = _stream().queue.RangeEncoder(), _categorical(_EVEN), {kind: Counts() for kind, _ in parts}
    for kind, levels in parts:
        if np.abs(levels).max(initial=0) > MOST:
            raise ValueError(f"A level of {np.abs(levels).max()} is out of range; expected -{MOST} to {MOST}.")
        coder.encode(int(levels.any()), flag)
        for index in (levels.ravel() + MOST).tolist() if levels.any() else ():
            coder.encode(int(index), counts[kind].model())
            counts[kind].add(int(index))
    return np.asarray(coder.get_compressed()).astype("<u4").tobytes().rstrip(b"\0")


def decode_levels(data: bytes, parts: Sequence[tuple[str, int]]) -> list[np.ndarray]:
    """The inverse of `encode_levels`.

    Args:
        data: the bytes.
        parts: for each tensor its class and how many numbers it has.

    Returns:
        int64 arrays, one for each tensor.

    Raises:
        ValueError: the bytes are damaged.
    """
    found = [np.zeros(size, np.int64) for _, size in parts]
    if not data:
        return found
    words = np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4").astype(np.uint32)
    coder, flag, counts = (
        _stream().queue.RangeDecoder(words),
        _categorical(_EVEN),
        {kind: Counts() for kind, _ in parts},
    )
    try:
        for (kind, size), levels in zip(parts, found, strict=True):
            for n in range(size) if coder.decode(flag) else ():
                index = int(coder.decode(counts[kind].model()))
                counts[kind].add(index)
                levels[n] = index - MOST
    except (AssertionError, ValueError) as error:
        raise ValueError(f"the coded weights are damaged: {error}") from error
    return found
