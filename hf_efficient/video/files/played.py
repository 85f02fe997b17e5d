"""The frames that a player shows: those of the stream in order, each enlarged by its map. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_efficient.video.routing import RoutingError

from .manifest import BundleError
from .reader import VideoInfo, probe, read_frames


class PlayedFrame(NamedTuple):
    """rgb (height, width, 3) uint8; time stamp and duration in units of the source's time base."""

    rgb: np.ndarray
    pts: int
    duration: int


class SmallFrame(NamedTuple):
    """rgb (h, w, 3) uint8 as decoded; labels (I, J), the network of each patch; time as that of `PlayedFrame`."""

    rgb: np.ndarray
    labels: np.ndarray
    pts: int
    duration: int


def small_frames(
    path: Path,
    low_resolution: Path,
    source: VideoInfo,
    labels: Iterator[np.ndarray],
    num_networks: int,
    every: int = 1,
    opened: Callable[[], object] | None = None,
) -> Iterator[SmallFrame]:
    """What a player enlarges: the stream's frames with their maps, with constant memory.

    Args:
        path: the folder, for messages.
        low_resolution: the stream.
        source: the video that is restored.
        labels: (I, J) network of each patch, frame by frame; without end for one network.
        num_networks: how many there are.
        every: yield every `every`-th frame, from the first.
        opened: called once the stream is open and stays the one that it is.

    Raises:
        BundleError: stream or map do not have the source's number of frames, or the map is damaged.
    """
    low = probe(low_resolution)
    another = f"{path} says {source.frames} frames; its map or its stream has another number."
    count = 0
    tick = low.time_base / source.time_base
    for frame in read_frames(low_resolution, low):
        if count == 0 and opened is not None:
            opened()
        mine = _next(labels, path)
        count += 1
        if mine is None or count > source.frames:
            raise BundleError(another)
        if (count - 1) % every == 0:
            yield SmallFrame(frame.rgb, mine, round(frame.pts * tick), round(frame.duration * tick))
    if count != source.frames or (num_networks > 1 and _next(labels, path) is not None):
        raise BundleError(another)


def _next(labels: Iterator[np.ndarray], path: Path) -> np.ndarray | None:
    """The next frame's map, or None at its end."""
    try:
        return next(labels, None)
    except RoutingError as error:
        raise BundleError(f"{path}: {error}") from error


def played_frames(
    small: Iterator[SmallFrame], enlarge: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[PlayedFrame]:
    """Play a stream.

    Args:
        small: its frames.
        enlarge: makes of a decoded frame (h, w, 3) and its labels the played one, (height, width, 3), both uint8.
    """
    return (PlayedFrame(enlarge(rgb, labels), pts, duration) for rgb, labels, pts, duration in small)
