"""The routing map: which network enlarges which patch, in a few bytes per frame.

A frame's map is XORed with the map of the frame before (labels rarely change), cut into bit planes, most significant
first, each packed eight to a byte, most significant bit first, rows left to right, padded with zeros to whole bytes;
all frames together are one zlib stream.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

MOST_EXPERTS = 256


class RoutingError(ValueError):
    """A routing map that is broken or belongs to another video."""


def planes(num_experts: int) -> int:
    """Bits of a label."""
    return (num_experts - 1).bit_length()


def pack(labels: np.ndarray, num_experts: int) -> bytes:
    """Pack a map. With one expert there is nothing to store: the result is empty.

    Args:
        labels: (T, I, J) whole numbers in [0, num_experts).
        num_experts: k, 1 to 256.

    Raises:
        RoutingError: a label or k is out of range.
    """
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise RoutingError(f"num_experts={num_experts} is out of range; expected 1 to {MOST_EXPERTS}.")
    if labels.size and not (labels.min() >= 0 and labels.max() < num_experts):
        raise RoutingError(f"Labels run from {labels.min()} to {labels.max()}; expected 0 to {num_experts - 1}.")
    if num_experts == 1:
        return b""
    flat = labels.reshape(len(labels), -1).astype(np.uint8)
    changes = flat ^ np.concatenate([np.zeros_like(flat[:1]), flat[:-1]])
    bits = [np.packbits(changes >> bit & 1, axis=1) for bit in reversed(range(planes(num_experts)))]
    return zlib.compress(np.stack(bits, 1).tobytes(), 9)


def unpack(packed: bytes, rows: int, columns: int, num_experts: int) -> Iterator[np.ndarray]:
    """The maps of all frames, one at a time: memory does not depend on the claims of the stream.

    Yields:
        (rows, columns) uint8, one for each frame; without end for one expert.

    Raises:
        RoutingError: the stream is damaged, ends inside a frame, or names an expert that does not exist.
    """
    previous = np.zeros(rows * columns, np.uint8)
    if num_experts == 1:
        while True:
            yield previous.reshape(rows, columns)
    depth, plane_bytes = planes(num_experts), (rows * columns + 7) // 8
    inflate = zlib.decompressobj()
    rest, block = packed, b""
    while True:
        try:
            while len(block) < depth * plane_bytes and not inflate.eof:
                piece = inflate.decompress(rest, depth * plane_bytes - len(block))
                rest = inflate.unconsumed_tail
                if not piece and not rest:
                    break
                block += piece
        except zlib.error as error:
            raise RoutingError(f"The routing map is damaged: {error}.") from error
        if not block and inflate.eof:
            return
        if len(block) < depth * plane_bytes:
            raise RoutingError("The routing map ends in the middle of a frame: it is damaged or from another grid.")
        bits = np.unpackbits(np.frombuffer(block, np.uint8).reshape(depth, plane_bytes), axis=1, count=rows * columns)
        change = np.zeros_like(previous)
        for plane in bits:
            change = change << 1 | plane
        previous, block = previous ^ change, b""
        if previous.max() >= num_experts:
            raise RoutingError(f"The routing map names expert {previous.max()} of {num_experts}: it is damaged.")
        yield previous.reshape(rows, columns)
