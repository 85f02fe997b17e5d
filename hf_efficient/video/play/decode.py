"""From a bundle to a video file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from hf_efficient.files import check_output, locked
from hf_efficient.video.codecs import CODECS, check_encoder, encoder_options
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.manifest import sha256
from hf_efficient.video.files.reader import StrPath, VideoInfo
from hf_efficient.video.files.writer import VideoWriter

from .player import Player


def decode(
    bundle: StrPath | Player,
    output: StrPath,
    codec: str = "libx264",
    quality: int | None = None,
    preset: str | None = None,
    max_frames: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Write the high-resolution video of a bundle, with the sound, subtitles, time stamps and tags of its source.

    Args:
        bundle: folder, or an opened player.
        output: the new file: .mp4, or .mkv, which holds any sound.
        codec: "libx264", "libx265", "libsvtav1" or "ffv1".
        quality: constant quality of the codec (crf; smaller is better); None: visually lossless.
        preset: of the codec; None: a fast one.
        max_frames: stop after this number of frames.
        progress: called with 1 for each frame.

    Returns:
        The path of the new file.

    Raises:
        BundleError: the bundle is damaged.
        MediaError: the file cannot be written.
        ValueError: the output lies in the bundle or is its source, or the codec has no such quality or preset.
        OSError: the output is of another kind, its folder does not exist or cannot be written, or the disk is full.
        BlockingIOError: another process is writing it.
    """
    check_encoder(codec, quality, preset)
    player = bundle if isinstance(bundle, Player) else Player(bundle)
    target = check_output(output, "file", [player.bundle.path])
    _check_no_original(target, player.bundle)
    source = player.bundle.source
    options = {}
    if codec != "ffv1":
        lossless, fast = (CODECS[codec].visually_lossless, CODECS[codec].fast) if codec in CODECS else (10, "")
        options = encoder_options(codec, lossless if quality is None else quality, preset or fast)
    size = (source.width, source.height)
    kind = output_pixel_format(source, codec)
    with (
        locked(target),
        VideoWriter(target, source, size, codec, kind, options, player.bundle.low_resolution) as writer,
    ):
        for frame in islice(player.frames(), max_frames):
            writer.write(*frame)
            if progress is not None:
                progress(1)
    return target


def _check_no_original(target: Path, bundle: Bundle) -> None:
    """Refuse to overwrite the video that the bundle was made from: what is played is only close to it."""
    source = bundle.manifest["source"]
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
