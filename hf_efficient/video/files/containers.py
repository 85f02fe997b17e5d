"""Containers: opening a media file and no other file that it names, and measuring its length without its header."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

from hf_efficient.extras import extra
from hf_efficient.files import ffmpeg_url

with extra("video"):
    import av

StrPath = str | os.PathLike[str]

# FFmpeg's names of formats that hold what they play. Not here: playlists (hls, dash, concat, sdp), numbered images
# (image2), scripts and devices (avisynth, lavfi), and formats of several files (vobsub): they open what they name.
FORMATS = (
    "mov", "matroska", "webm", "avi", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "vvc", "obu", "ivf", "ogg",
    "flv", "asf", "gif", "apng", "nut", "mxf", "yuv4mpegpipe", "dv", "wtv", "rm", "mjpeg", "png_pipe", "jpeg_pipe",
    "webp_pipe", "bmp_pipe", "tiff_pipe", "mp3", "wav", "flac", "aac",
)  # fmt: skip
# Options of FFmpeg's input, for PyAV and for its command line alike. (mov's external references are off by default.)
ONLY_THIS_FILE = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
# What may be written: one file, under the name that was given
WRITTEN = ("mp4", "mov", "ipod", "matroska", "webm", "avi", "mpegts", "nut")


class MediaError(ValueError):
    """A file that is not a video, is broken or unsupported. The message names the file, the fault and what to do."""


@contextmanager
def open_media(path: StrPath) -> Iterator[Any]:
    """An open input container, as a context. FFmpeg's errors are raised as MediaError.

    Raises:
        MediaError: no such file, none that FFmpeg reads, or one of a format that opens other files (a playlist).
    """
    if not os.path.isfile(path):
        raise MediaError(f"There is no file {str(path)!r}: give the path of a video file.")
    try:
        with input_container(path) as container:
            yield container
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            f"{str(path)!r} cannot be read as video: {what}. Is it a whole, playable video file? (Playlists and "
            "sequences of images, which open other files, are not read.)"
        ) from error


def input_container(path: StrPath) -> Any:
    """PyAV's container, which reads this file alone."""
    # FFmpeg takes such a name for the first of numbered images
    image = "jpeg_pipe" if os.path.splitext(path)[1].lower() in (".jpg", ".jpeg") else None
    return av.open(ffmpeg_url(path), format=image, container_options=ONLY_THIS_FILE)


class Extent(NamedTuple):
    """The measured length of a video: packets of its stream, seconds, and mean rate (0 if there is one packet)."""

    frames: int
    seconds: float
    rate: Fraction


def measure_extent(path: StrPath, most_frames: int | None = None, most_seconds: float | None = None) -> Extent:
    """Count the frames and seconds of a video by its packets, without decoding and without its header.

    A header may say nothing (a live recording) or be wrong. One packet is one frame, except in streams of single fields
    or with frames that are not shown, which have more packets.

    Args:
        path: the file.
        most_frames: stop as soon as there are more; the result is then larger than this, but not the whole count.
        most_seconds: likewise, of time stamps.

    Raises:
        MediaError: as `open_media`; no video stream, or no packet of one.
    """
    with open_media(path) as container:
        stream = video_stream(container, path)
        unit = stream.time_base or Fraction(1, 90_000)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        count, first, last, end = 0, None, None, None
        for packet in container.demux(stream):
            if packet.size == 0:  # the flushing packet at the end
                continue
            count += 1
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                first = stamp if first is None else min(first, stamp)
                last = stamp if last is None else max(last, stamp)
                end = max(end or last, stamp + (packet.duration or 0))
            covered = (end - first) * unit if first is not None and end is not None else count / rate
            if (most_frames is not None and count > most_frames) or (
                most_seconds is not None and covered > most_seconds
            ):
                break
    if not count:
        raise MediaError(f"{str(path)!r} has a video stream without a single frame.")
    if first is None or last is None or last == first:
        return Extent(count, float(max(covered, 1 / rate)), Fraction(0) if count == 1 else rate)
    mean = (count - 1) / ((last - first) * unit)
    return Extent(count, float(max(covered, (last - first) * unit + 1 / mean)), mean)


def video_stream(container: Any, path: StrPath) -> Any:
    """The first video stream that is not a cover image.

    Raises:
        MediaError: there is none, or its codec is not known.
    """
    streams = [s for s in container.streams.video if not is_cover(s)]
    if not streams:
        kinds = sorted({"cover image" if is_cover(s) else s.type for s in container.streams}) or ["nothing"]
        raise MediaError(f"{str(path)!r} has no video stream, only {', '.join(kinds)}.")
    if streams[0].codec_context is None:
        raise MediaError(f"{str(path)!r} has a video stream of a codec that this FFmpeg does not know.")
    return streams[0]


def is_cover(stream: Any) -> bool:
    """Whether a stream is a cover image, which FFmpeg counts as video."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)
