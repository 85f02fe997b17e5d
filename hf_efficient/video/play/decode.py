"""From a bundle to a video file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from hf_efficient.files import check_output, locked
from hf_efficient.video.codecs import check_encoder
from hf_efficient.video.files.outputs import check_no_original, open_output
from hf_efficient.video.files.reader import StrPath

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
    check_no_original(target, player.bundle.manifest["source"])
    low, source = player.bundle.low_resolution, player.bundle.source
    with locked(target), open_output(target, source, codec, quality, preset, low) as writer:
        for frame in islice(player.frames(), max_frames):
            writer.write(*frame)
            if progress is not None:
                progress(1)
    return target
