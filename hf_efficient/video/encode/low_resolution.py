"""The low-resolution stream: what is sent, and what the networks learn from once it is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from hf_efficient.video.files.reader import Frame, StrPath, VideoInfo
from hf_efficient.video.files.side_data import SideData
from hf_efficient.video.files.writer import LOSSLESS, VideoWriter, encoder_options
from hf_efficient.video.patches import Geometry, degrade, pad_to_grid, to_rgb8, to_tensor
from hf_efficient.video.settings import FitSettings


def reduced(frames: Iterable[Frame], geometry: Geometry) -> Iterator[Frame]:
    """Every frame in low resolution."""
    for frame in frames:
        small = degrade(pad_to_grid(to_tensor(frame.rgb), geometry), geometry)
        yield frame._replace(rgb=to_rgb8(small))


def write_stream(
    source: StrPath, info: VideoInfo, frames: Iterable[Frame], geometry: Geometry, settings: FitSettings, target: Path
) -> None:
    """Encode reduced frames, with the sound, subtitles and time stamps of their source.

    Args:
        source: the video, for what is copied.
        info: what it is like.
        frames: what `reduced` makes of its frames.
        geometry: gives the size.
        settings: codec, quality and preset of the stream.
        target: the file, which appears whole or not at all.
    """
    codec, pixel_format = settings.lr_codec, "yuv420p"
    options = encoder_options(codec, settings.lr_quality, settings.lr_preset)
    if settings.lr_quality == 0:
        codec, pixel_format, options = LOSSLESS
    # an untagged source's matrix goes by its height, which the stream has not: so the stream is tagged
    color = replace(info.color, space=info.color.matrix(info.height))
    like = replace(info, color=color, side=SideData(info.side.display_matrix))  # the rest is in bundle.json
    size = (geometry.lr_width, geometry.lr_height)
    with VideoWriter(target, like, size, codec, pixel_format, options, source) as writer:
        for frame in frames:
            writer.write(*frame)


def stream_name(info: VideoInfo) -> str:
    """MP4 for a source of its family; else Matroska, which holds any sound but rounds times to milliseconds."""
    return "low_resolution.mp4" if "mp4" in info.container else "low_resolution.mkv"
