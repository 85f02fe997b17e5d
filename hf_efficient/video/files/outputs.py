"""The video file that a player writes. Without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_efficient.video.codecs import CODECS, encoder_options

from .manifest import sha256
from .reader import VideoInfo
from .writer import VideoWriter


def open_output(
    target: Path, source: VideoInfo, codec: str, quality: int | None, preset: str | None, low_resolution: Path | None
) -> VideoWriter:
    """A writer of the source's size, rate, tags and chroma, with the sound and subtitles of the stream if it is given.

    Args:
        target: the new file.
        source: the video that is restored.
        codec: a name of `CODECS`, or "ffv1".
        quality: crf; None: visually lossless.
        preset: None: a fast one.
        low_resolution: the stream.

    Raises:
        MediaError: see `VideoWriter`.
    """
    options = {}
    if codec != "ffv1":
        lossless, fast = (CODECS[codec].visually_lossless, CODECS[codec].fast) if codec in CODECS else (10, "")
        options = encoder_options(codec, lossless if quality is None else quality, preset or fast)
    size, kind = (source.width, source.height), output_pixel_format(source, codec)
    return VideoWriter(target, source, size, codec, kind, options, low_resolution)


def check_no_original(target: Path, source: dict[str, Any]) -> None:
    """Refuse to overwrite the video that a bundle was made from: what is played is only close to it.

    Args:
        target: the output.
        source: its description in bundle.json.

    Raises:
        ValueError: the output is that video.
    """
    if target.is_file() and target.stat().st_size == source["bytes"] and sha256(target) == source["sha256"]:
        raise ValueError(
            f"{str(target)!r} is the video that the bundle was made from. It is not replaced by what the bundle plays: "
            "name another output."
        )


def output_pixel_format(source: VideoInfo, codec: str) -> str:
    """A pixel format with the source's chroma, if codec and size allow it."""
    if codec == "libsvtav1":
        return "yuv420p"
    even = source.width % 2 == source.height % 2 == 0
    halved = any(mark in source.pixel_format for mark in ("420", "nv12", "nv21", "411", "410"))
    return "yuv420p" if halved and even else "yuv444p"
