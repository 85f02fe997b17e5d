"""Videos that a request holds: a few frames, evenly over the length, decoded in memory."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_efficient.extras import extra

from .limits import Limits, Refused
from .media import bytes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECODE_SECONDS, MOST_PACKETS = 30.0, 200_000


class Clip(NamedTuple):
    """Frames of a video (T, H, W, 3) uint8, and which they are, as transformers' `VideoMetadata` has it."""

    frames: NDArray[np.uint8]
    metadata: dict[str, Any]


def clip_of(url: object, limits: Limits) -> Clip:
    """At most `max_frames` frames of the video of a URL.

    Raises:
        Refused: as `bytes_of`; or no video, a broken one, frames beyond the limits, or too long to decode.
    """
    with extra("video"):
        import av

        from hf_efficient.video.files.containers import ONLY_THIS_FILE, MediaError, video_stream
    raw = bytes_of(url, "video", limits)
    try:
        with av.open(io.BytesIO(raw), container_options=ONLY_THIS_FILE) as container:
            count, seconds = _extent(container, video_stream(container, "the video"))
        with av.open(io.BytesIO(raw), container_options=ONLY_THIS_FILE) as container:
            wanted = evenly(count, limits.max_frames)
            frames = _decoded(container, video_stream(container, "the video"), wanted, limits)
    except (av.error.FFmpegError, MediaError, UnicodeDecodeError, MemoryError) as error:
        raise Refused(f"A video cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not frames:
        raise Refused("A video cannot be read: none of its frames can be decoded.")
    indices = wanted[: len(frames)]
    metadata = {
        "total_num_frames": count,
        "fps": count / seconds if seconds > 0 else 24.0,
        "width": frames[0].shape[1],
        "height": frames[0].shape[0],
        "duration": seconds,
        "video_backend": "pyav",
        "frames_indices": indices,
    }
    return Clip(np.stack(frames), metadata)


def evenly(count: int, most: int) -> list[int]:
    """At most so many of `count` frames, evenly from the first to the last."""
    return [round(i) for i in np.linspace(0, count - 1, min(count, most))]


def _extent(container: Any, stream: Any) -> tuple[int, float]:
    """Packets of the stream, and seconds, 0 if unknown."""
    count, first, last = 0, None, None
    for packet in container.demux(stream):
        if not packet.size:
            continue
        count += 1
        if count > MOST_PACKETS:
            raise Refused(f"A video has more than {MOST_PACKETS} frames. Cut it.", 413)
        if packet.pts is not None:
            first = packet.pts if first is None else min(first, packet.pts)
            last = packet.pts if last is None else max(last, packet.pts)
    if not count:
        raise Refused("A video holds no frame.")
    if first is None or last is None or last == first:
        rate = stream.average_rate or stream.guessed_rate
        return count, float(count / rate) if rate else 0.0
    return count, float((last - first) * stream.time_base * count / (count - 1))


def _decoded(container: Any, stream: Any, wanted: list[int], limits: Limits) -> list[Any]:
    """The frames of these numbers, all of the size of the first; fewer where the video has fewer than packets."""
    stream.thread_type = "NONE"
    end, width, height = time.monotonic() + DECODE_SECONDS, 0, 0
    frames: list[Any] = []
    for number, frame in enumerate(container.decode(stream)):
        if frame.width * frame.height > limits.pixels:
            raise Refused(f"A video has frames of {frame.width} x {frame.height} pixels. Scale it down.", 413)
        if time.monotonic() > end:
            raise Refused(f"A video takes more than {DECODE_SECONDS:.0f} seconds to decode. Cut it.", 413)
        width, height = width or frame.width, height or frame.height
        while len(frames) < len(wanted) and wanted[len(frames)] == number:
            frames.append(frame.to_ndarray(format="rgb24", width=width, height=height))
        if len(frames) == len(wanted):
            break
    return frames
