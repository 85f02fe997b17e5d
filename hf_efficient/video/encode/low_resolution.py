"""The low-resolution stream: it is sent, and the networks learn from its decoded frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.video.codecs import LOSSLESS, encoder_options
from hf_efficient.video.files.reader import Frame, StrPath, VideoInfo
from hf_efficient.video.files.side_data import SideData
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.networks.backbones.luma import luma
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.inference import enlarge
from hf_efficient.video.patches import Geometry, degrade, pad_to_grid, to_rgb8, to_tensor
from hf_efficient.video.settings import BICUBIC, FitSettings

PROJECTIONS = 2

Enlarger = Callable[[Tensor], Tensor]
"""(1, 3, h, w) to (1, 3, s·h, s·w), colors in [0, 1]."""


def made_for(settings: FitSettings, device: torch.device) -> Enlarger | None:
    """How a player will enlarge the small frames that these settings ask for; None: they are not made for it."""
    if settings.downscaling == BICUBIC:
        return None
    if not settings.assignment.starts_from_general:
        return partial(upsample_bicubic, scale=settings.scale)
    general = general_network(settings.scale, settings.network(0).num_features)
    net = general.load().to(device)
    return lambda x: enlarge([net], [general.spec], x.to(device), None, (1, 1)).cpu()


def downscaled(frames: Iterable[Frame], geometry: Geometry, player: Enlarger | None = None) -> Iterator[Frame]:
    """Every frame at low resolution.

    Args:
        frames: of the source.
        geometry: the grid.
        player: how small frames will be enlarged: they are made for it by `back_projection`. None: bicubic frames.
    """
    for frame in frames:
        large = pad_to_grid(to_tensor(frame.rgb), geometry)
        small = degrade(large, geometry) if player is None else back_projection(large, geometry, player)
        yield frame._replace(rgb=to_rgb8(small))


def back_projection(y: Tensor, geometry: Geometry, player: Enlarger, rounds: int = PROJECTIONS) -> Tensor:
    """The small frame x whose enlargement U x is nearest to y in luma: x <- x + D Y(y - U x), from x = D y.

    Irani and Peleg, 1991; D is antialiased bicubic downscaling, Y luma, which is added to the three colors alike:
    chroma is enlarged by a filter that keeps little of its detail, which would cost bits. Nothing is rounded between.

    Args:
        y: (1, 3, s·lr_height, s·lr_width) in [0, 1].
        geometry: the grid.
        player: U.
        rounds: how often.
    """

    def down(image: Tensor) -> Tensor:
        return F.interpolate(image, size=(geometry.lr_height, geometry.lr_width), mode="bicubic", antialias=True)

    x = down(y)
    for _ in range(rounds):
        x = x + down(luma(y - player(x)))
    return x


def write_stream(
    source: StrPath, info: VideoInfo, frames: Iterable[Frame], geometry: Geometry, settings: FitSettings, target: Path
) -> None:
    """Encode downscaled frames, with the sound, subtitles and time stamps of their source.

    Args:
        source: the video whose sound and subtitles are copied.
        info: what `probe` said of it.
        frames: its frames, as `downscaled` yields them.
        geometry: gives the size.
        settings: codec, quality and preset of the stream.
        target: the new file, which appears whole or not at all.
    """
    codec, pixel_format = settings.lr_codec, "yuv420p"
    options = encoder_options(codec, settings.lr_quality, settings.lr_preset)
    if settings.lr_quality == 0:
        codec, pixel_format, options = LOSSLESS
    # the matrix of an untagged source follows from its height, and the stream's height differs: so the stream is tagged
    color = replace(info.color, space=info.color.matrix(info.height))
    like = replace(info, color=color, side=SideData(info.side.display_matrix))  # the rest stands in bundle.json
    size = (geometry.lr_width, geometry.lr_height)
    with VideoWriter(target, like, size, codec, pixel_format, options, source) as writer:
        for frame in frames:
            writer.write(*frame)


def stream_name(info: VideoInfo) -> str:
    """MP4 for a source of that family; else Matroska, which holds any sound but rounds time stamps to milliseconds."""
    return "low_resolution.mp4" if "mp4" in info.container else "low_resolution.mkv"
