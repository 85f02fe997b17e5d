"""A bundle to a video file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from hf_efficient.files import check_output, locked
from hf_efficient.video.files.bundle import Bundle, sha256
from hf_efficient.video.files.reader import StrPath, VideoInfo
from hf_efficient.video.files.writer import VideoWriter, encoder_options
from hf_efficient.video.settings import check_encoder

from .player import Player

# Where one more bit brings nothing that an eye or the PSNR of the networks would notice.
VISUALLY_LOSSLESS = {"libx264": 10, "libx265": 12, "libsvtav1": 12}
FAST = {"libx264": "medium", "libx265": "medium", "libsvtav1": "8"}


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
        output: the new file; .mp4, or .mkv, which holds any sound.
        codec: "libx264", "libx265", "libsvtav1" or "ffv1".
        quality: the codec's constant quality (crf; smaller is better); visually lossless by default.
        preset: the codec's speed.
        max_frames: only the first so many.
        progress: called with 1 for each frame.

    Raises:
        BundleError: the bundle is damaged.
        MediaError: the file cannot be written.
        ValueError: the output lies in the bundle or is its source, or the codec has no such quality or preset.
        OSError: the output is of another kind, its folder is not there or cannot be written, or no space is left.
        BlockingIOError: another process is writing it.
    """
    check_encoder(codec, quality, preset)
    player = bundle if isinstance(bundle, Player) else Player(bundle)
    target = check_output(output, "file", [player.bundle.path])
    _check_no_original(target, player.bundle)
    source = player.bundle.source
    options = {}
    if codec != "ffv1":
        crf = VISUALLY_LOSSLESS.get(codec, 10) if quality is None else quality
        options = encoder_options(codec, crf, preset or FAST.get(codec, ""))
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
    """Refuse the very video that the bundle was made of, which what is played is only near to."""
    source = bundle.manifest["source"]
    if target.is_file() and target.stat().st_size == source["bytes"] and sha256(target) == source["sha256"]:
        raise ValueError(
            f"{str(target)!r} is the video that the bundle was made of, and is not replaced by what the bundle makes "
            "of it: name another output."
        )


def output_pixel_format(source: VideoInfo, codec: str) -> str:
    """The source's chroma, where the codec and the size can have it."""
    if codec == "libsvtav1":
        return "yuv420p"
    even = source.width % 2 == source.height % 2 == 0
    halved = any(mark in source.pixel_format for mark in ("420", "nv12", "nv21", "411", "410"))
    return "yuv420p" if halved and even else "yuv444p"
