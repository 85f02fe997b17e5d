"""Reading video files: their properties, and their frames as RGB, one at a time."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from hf_efficient.extras import extra

with extra("video"):
    import av

from .color import FULL_RANGE, OTHER_MATRICES, ColorTags, CorrectLabels, component_bits, to_rgb
from .containers import MediaError, StrPath, measure_extent, open_media, video_stream
from .headers import is_cropped
from .remuxing import copyable_streams
from .side_data import NOTHING, SideData, side_data

# More than 8K. A header that claims more is broken or hostile, and such a frame would not fit in memory.
MAX_PIXELS = 8192 * 8192
REFUSE = "refuse"


@dataclass(frozen=True)
class VideoInfo:
    """The properties of a file's video stream.

    Args:
        width: in stored pixels, before rotation and pixel aspect.
        height: likewise.
        pixel_format: FFmpeg's name, "yuv420p".
        rate: mean frames per second, for encoders; only the time stamps are exact. 25 if there is one frame.
        time_base: seconds of one unit of a time stamp.
        pixel_aspect: width of a pixel over its height; 0 if the file does not give it, and then it is not written.
        color: color tags.
        rotation: degrees by which a player turns frames, counter-clockwise.
        frames: by the header; counted (`measure_extent`) if it does not give them.
        seconds: likewise.
        container: FFmpeg's names, "mov,mp4,m4a,3gp,3g2,mj2".
        other_streams: codec names of audio and subtitles.
        deinterlace: whether frames are deinterlaced when they are read.
        side: side data of the frames.
        dropped: names of the side data that is not kept.
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
    deinterlace: bool = False
    side: SideData = NOTHING
    dropped: tuple[str, ...] = ()

    @property
    def bits(self) -> int:
        """Bits of a color component as stored; frames are read as 8."""
        return component_bits(av.VideoFormat(self.pixel_format))


class Frame(NamedTuple):
    """A frame: rgb (H, W, 3) uint8, time stamp and duration (0: unknown) in units of the stream's time base."""

    rgb: np.ndarray
    pts: int
    duration: int


def probe(path: StrPath, alpha: str = REFUSE, interlaced: str = REFUSE, most_frames: int | None = None) -> VideoInfo:
    """The properties of a video file, after checking that its frames can be read. Decodes one frame.

    Frames and seconds are those of the header, if it gives them; `measure_extent` counts them.

    Args:
        path: the file.
        alpha: "refuse" a video with an alpha channel, or "drop" it.
        interlaced: "refuse" an interlaced video, "deinterlace" it when its frames are read (as many frames as before),
            or "keep" its frames as they are, if its flag is wrong.
        most_frames: if frames have to be counted, stop as soon as there are more.

    Raises:
        MediaError: there is no such file, it is not a video or has no frame, its frames have more than MAX_PIXELS; or
            it has an alpha channel or is interlaced, and that is refused.
    """
    with open_media(path) as container:
        stream = _video_stream(container, path)
        context = stream.codec_context
        first = _first_frame(container, stream, path)
        if alpha == REFUSE and any(component.is_alpha for component in first.format.components):
            raise MediaError(
                f"{str(path)!r} is {first.format.name}: it has an alpha channel, which RGB networks lose. Pass "
                "alpha='drop' (--alpha drop) to drop it."
            )
        if interlaced == REFUSE and first.interlaced_frame:
            raise MediaError(
                f"{str(path)!r} is interlaced. Pass interlaced='deinterlace' (--interlaced deinterlace), or 'keep' if "
                "its flag is wrong and its frames are progressive."
            )
        if int(first.colorspace) in OTHER_MATRICES and not first.format.is_rgb:
            raise MediaError(
                f"{str(path)!r} has the color matrix {OTHER_MATRICES[int(first.colorspace)]}, which is not supported; "
                "convert it to BT.709 first (FFmpeg's zscale filter does: -vf zscale=matrix=709)."
            )
        side, dropped = side_data(first)
        if is_cropped(stream):
            dropped.append("borders that the container cuts off its frames")
        frames, seconds, rate = _length(container, stream, path, most_frames)
        return VideoInfo(
            width=first.width,
            height=first.height,
            pixel_format=first.format.name,
            rate=rate,
            time_base=Fraction(stream.time_base),
            pixel_aspect=Fraction(stream.sample_aspect_ratio or 0),
            color=ColorTags(
                int(first.colorspace), int(first.color_primaries), int(first.color_trc),
                FULL_RANGE if first.format.name.startswith("yuvj") else int(context.color_range),
            ),
            rotation=int(first.rotation),
            frames=frames,
            seconds=seconds,
            container=container.format.name,
            other_streams=tuple(s.codec_context.name for s in copyable_streams(container)),
            deinterlace=interlaced == "deinterlace" and bool(first.interlaced_frame),
            side=side,
            dropped=tuple(dropped),
        )  # fmt: skip


def _first_frame(container: Any, stream: Any, path: StrPath) -> Any:
    first = next((frame for packet in container.demux(stream) for frame in packet.decode()), None)
    if first is None:
        raise MediaError(f"{str(path)!r} has a video stream without a single frame.")
    return first


def carried_side_data(path: StrPath) -> SideData:
    """The side data of a file's first frame."""
    with open_media(path) as container:
        return side_data(_first_frame(container, _video_stream(container, path), path))[0]


def _length(container: Any, stream: Any, path: StrPath, most_frames: int | None) -> tuple[int, float, Fraction]:
    """Frames, seconds and rate, all positive: by the header, or measured if it is silent or contradicts itself."""
    if not stream.time_base:
        raise MediaError(
            f"{str(path)!r} has a video stream without a time base. Remux it first: ffmpeg -i FILE -c copy NEW.mkv"
        )
    frames, rate = int(stream.frames), stream.average_rate or stream.guessed_rate
    seconds = float((stream.duration or 0) * stream.time_base)
    seconds = seconds if seconds > 0 else (container.duration or 0) / 1e6
    silent = frames <= 0 or seconds <= 0 or not rate or rate <= 0
    if silent or not 0.5 < float(rate * seconds / frames) < 2:
        extent = measure_extent(path, most_frames)
        if not rate or rate <= 0 or not 0.5 < float(rate / (extent.rate or rate)) < 2:
            rate = extent.rate or Fraction(25)
        if most_frames is None or extent.frames <= most_frames:
            return extent.frames, extent.seconds, Fraction(rate)
        frames, seconds = (
            max(frames, extent.frames),
            max(seconds, extent.seconds),
        )  # the video is longer than what was counted
    return frames, seconds, Fraction(rate)


def read_frames(path: StrPath, info: VideoInfo | None = None) -> Iterator[Frame]:
    """All frames of a video in order of display, with constant memory. Time stamps rise strictly.

    Args:
        path: the file.
        info: what `probe` returned for it; None: it is probed.

    Raises:
        MediaError: as `probe`; or the stream is damaged or cut off, or its frames change their size.
    """
    info = info or probe(path)
    matrix = info.color.matrix(info.height)
    step = max(1, round(1 / (info.rate * info.time_base)))
    last: int | None = None
    with open_media(path) as container:
        correct_labels = CorrectLabels(_video_stream(container, path))
        frames = _decoded(container, path, info)
        for frame in _progressive(frames) if info.deinterlace else frames:
            following = 0 if last is None else last + step
            pts = following if frame.pts is None else int(frame.pts)
            last = pts if last is None else max(pts, last + 1)
            duration = int(frame.duration or 0)
            yield Frame(to_rgb(correct_labels(frame), matrix, info.color.range), last, duration)
    if last is None:
        raise MediaError(f"{str(path)!r} has a video stream without a single frame.")


def _decoded(container: Any, path: StrPath, info: VideoInfo) -> Iterator[Any]:
    """FFmpeg's frames; they are whole and of one size."""
    stream = _video_stream(container, path)
    stream.thread_type, warned = "AUTO", False
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise MediaError(f"{str(path)!r} ends in the middle of a frame: the file is damaged or was cut off.")
        for frame in packet.decode():
            if (frame.width, frame.height) != (info.width, info.height):
                raise MediaError(
                    f"{str(path)!r} changes its size from {info.width}x{info.height} to "
                    f"{frame.width}x{frame.height} on the way; split it there first."
                )
            if frame.is_corrupt and not warned:
                warnings.warn(
                    f"{str(path)!r} is damaged: parts of some frames are guessed by FFmpeg, at {frame.time or 0:.2f} s "
                    "for the first time.",
                    stacklevel=2,
                )
                warned = True
            yield frame


def _progressive(frames: Iterator[Any]) -> Iterator[Any]:
    """Frames deinterlaced by FFmpeg's bwdif, as many as before, with their time stamps."""
    graph: Any = None
    stamps: deque[tuple[int | None, int]] = deque()  # the filter counts in a time base of its own

    def pulled() -> Iterator[Any]:
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                frame = graph.pull()
                frame.pts, frame.duration = stamps.popleft()
                yield frame

    for frame in frames:
        stamps.append((frame.pts, frame.duration or 0))
        if graph is None:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            graph.link_nodes(source, graph.add("bwdif", "mode=send_frame"), graph.add("buffersink")).configure()
        graph.push(frame)
        yield from pulled()
    if graph is not None:
        graph.push(None)
        yield from pulled()


def _video_stream(container: Any, path: StrPath) -> Any:
    """The stream that is played; its frames fit in memory."""
    stream = video_stream(container, path)
    context = stream.codec_context
    if context.width * context.height > MAX_PIXELS:
        raise MediaError(
            f"{str(path)!r} claims frames of {context.width}x{context.height} pixels; "
            f"more than {MAX_PIXELS} pixels a frame are not supported."
        )
    return stream
