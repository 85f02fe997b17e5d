"""Reading video: what a file says about itself, and its frames as RGB, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation

# 8K with room to spare: a header that claims more is broken or hostile, and a frame of it would not fit in memory.
MAX_PIXELS = 8192 * 8192
RESAMPLING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND
UNSPECIFIED = 2  # "unspecified" of ITU-T H.273
BT601, BT709 = 5, 1
FULL_RANGE = 2

Path_ = str | os.PathLike[str]


class MediaError(ValueError):
    """A file that is no video, is broken, or holds what is not supported. The message names file, fault and fix."""


@dataclass(frozen=True)
class ColorTags:
    """Colour description as numbers of ITU-T H.273 (range: 0 unspecified, 1 limited, 2 full)."""

    space: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    range: int = 0

    def matrix(self, height: int) -> int:
        """The YUV matrix; where the tag is absent, as players assume: BT.709 from 720 lines on, else BT.601."""
        known = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
        return known.get(self.space, BT709 if height >= 720 else BT601)


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video stream.

    Args:
        width, height: stored pixels, before rotation and pixel aspect.
        pixel_format: FFmpeg's name, "yuv420p".
        rate: mean frames a second, for encoders; the truth is in the time stamps.
        time_base: seconds of one unit of a time stamp.
        pixel_aspect: width of a pixel over its height; 0 is unknown.
        color: colour tags.
        rotation: degrees counter-clockwise that a player turns the picture by.
        frames: by the header; 0 is unknown.
        seconds: by the header; 0 is unknown.
        container: FFmpeg's names, "mov,mp4,m4a,3gp,3g2,mj2".
        other_streams: codec names of audio and subtitles.
    """

    width: int
    height: int
    pixel_format: str
    rate: Fraction
    time_base: Fraction
    pixel_aspect: Fraction
    color: ColorTags
    rotation: int
    frames: int
    seconds: float
    container: str
    other_streams: tuple[str, ...]


class Frame(NamedTuple):
    """One picture: rgb (H, W, 3) uint8, time stamp and duration (0: unknown) in units of the stream's time base."""

    rgb: np.ndarray
    pts: int
    duration: int


@contextmanager
def open_media(path: Path_) -> Iterator[Any]:
    """An input container; FFmpeg's errors come out as MediaError, and the file is closed whatever happens."""
    if not os.path.isfile(path):
        raise MediaError(f"There is no file {str(path)!r}: give the path of a video file.")
    try:
        with av.open(os.fspath(path)) as container:
            yield container
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            f"{str(path)!r} cannot be read as video: {what}. Is it a whole, playable video file?"
        ) from error


def probe(path: Path_) -> VideoInfo:
    """What `path` holds, checked for all that reading it would stumble over. Decodes one frame.

    Raises:
        MediaError: no such file, not a video, audio only, no frame, more than MAX_PIXELS, more than 8 bits, alpha.
    """
    with open_media(path) as container:
        stream = _video_stream(container, path)
        context = stream.codec_context
        first = next((frame for packet in container.demux(stream) for frame in packet.decode()), None)
        if first is None:
            raise MediaError(f"{str(path)!r} has a video stream without a single frame.")
        _check_format(first.format, path)
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        return VideoInfo(
            width=first.width,
            height=first.height,
            pixel_format=first.format.name,
            rate=Fraction(stream.average_rate or stream.guessed_rate or 25),
            time_base=Fraction(stream.time_base),
            pixel_aspect=Fraction(stream.sample_aspect_ratio or 0),
            color=ColorTags(
                int(first.colorspace), int(first.color_primaries), int(first.color_trc),
                FULL_RANGE if first.format.name.startswith("yuvj") else int(context.color_range),
            ),
            rotation=int(first.rotation),
            frames=int(stream.frames),
            seconds=seconds,
            container=container.format.name,
            other_streams=tuple(s.codec_context.name for s in copyable_streams(container)),
        )  # fmt: skip


def copyable_streams(container: Any) -> list[Any]:
    """Audio and subtitle streams whose codec FFmpeg knows; data streams (time codes) cannot be remuxed."""
    return [s for s in container.streams if s.type in ("audio", "subtitle") and s.codec_context is not None]


def read_frames(path: Path_, info: VideoInfo | None = None) -> Iterator[Frame]:
    """All frames of a video in order of display, flat memory. Time stamps rise strictly.

    Args:
        path: the file.
        info: what `probe` said, to save asking again.

    Raises:
        MediaError: as `probe`; or the stream is damaged or cut, or changes its size on the way.
    """
    info = info or probe(path)
    matrix = info.color.matrix(info.height)
    step = max(1, round(1 / (info.rate * info.time_base)))
    last: int | None = None
    with open_media(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError(f"{str(path)!r} ends in the middle of a frame: the file is damaged or was cut off.")
            for frame in packet.decode():
                if (frame.width, frame.height) != (info.width, info.height):
                    raise MediaError(
                        f"{str(path)!r} changes its size from {info.width}x{info.height} to "
                        f"{frame.width}x{frame.height} on the way; split it there first."
                    )
                following = 0 if last is None else last + step
                pts = following if frame.pts is None else int(frame.pts)
                last = pts if last is None else max(pts, last + 1)
                yield Frame(to_rgb(frame, matrix, info.color.range), last, int(frame.duration or 0))
    if last is None:
        raise MediaError(f"{str(path)!r} has a video stream without a single frame.")


def to_rgb(frame: Any, matrix: int, color_range: int) -> np.ndarray:
    """(H, W, 3) uint8 of a decoded frame, by the given YUV matrix and range (0: limited)."""
    return frame.reformat(
        format="rgb24", src_colorspace=matrix, src_color_range=color_range, interpolation=RESAMPLING, threads=1
    ).to_ndarray()


def _video_stream(container: Any, path: Path_) -> Any:
    """The first video stream that is no cover picture."""
    streams = [s for s in container.streams.video if "attached_pic" not in str(s.disposition)]
    if not streams:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise MediaError(f"{str(path)!r} has no video stream, only {', '.join(kinds)}.")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{str(path)!r} has a video stream of a codec that this FFmpeg does not know.")
    if context.width * context.height > MAX_PIXELS:
        raise MediaError(
            f"{str(path)!r} claims frames of {context.width}x{context.height} pixels; "
            f"more than {MAX_PIXELS} pixels a frame are not supported."
        )
    if context.format is not None:
        _check_format(context.format, path)
    return stream


def _check_format(pixel_format: Any, path: Path_) -> None:
    bits = max(component.bits for component in pixel_format.components)
    if bits > 8:
        fault = f"{bits} bits a component"
    elif any(component.is_alpha for component in pixel_format.components):
        fault = "an alpha channel"
    else:
        return
    raise MediaError(
        f"{str(path)!r} is {pixel_format.name}: {fault}, which 8-bit RGB networks would lose. Convert it first: "
        f"ffmpeg -i {Path(path).name} -pix_fmt yuv420p ..."
    )
