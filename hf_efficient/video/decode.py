"""Playing a bundle: the low-resolution stream through its networks, frame by frame. Torch, safetensors, PyAV alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hf_efficient.video import routing
from hf_efficient.video.bundle import Bundle, BundleError
from hf_efficient.video.experts import load_config, load_experts, network_specs
from hf_efficient.video.inference import enlarge
from hf_efficient.video.media import Path_, VideoInfo, probe, read_frames
from hf_efficient.video.patches import to_rgb8, to_tensor
from hf_efficient.video.writing import VideoWriter

# Where one more bit brings nothing that an eye or the PSNR of the networks would notice.
VISUALLY_LOSSLESS = {"libx264": "10", "libx265": "12", "libsvtav1": "12"}


class Player:
    """An opened bundle and its networks.

    Args:
        bundle: folder, or an opened bundle.
        device: where the networks run.

    Raises:
        BundleError: the bundle is damaged or inconsistent.
    """

    def __init__(self, bundle: Path_ | Bundle, device: str | torch.device = "cpu") -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        try:
            self.config = load_config(self.bundle.model)
            self.experts, self.packed = load_experts(self.bundle.model, self.config)
        except ValueError as error:
            raise BundleError(str(error)) from error
        self.experts.to(device)
        self.device = device
        self.specs = network_specs(self.config)
        self.geometry = self.bundle.geometry

    def labels(self) -> Iterator[np.ndarray]:
        """(I, J) expert of each patch, frame by frame."""
        return routing.unpack(self.packed, self.geometry.rows, self.geometry.columns, self.config.num_experts)

    def enlarge(self, lr: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(lr_height, lr_width, 3) uint8 to (height, width, 3) uint8."""
        patch = (self.config.patch_height, self.config.patch_width)
        output = enlarge(list(self.experts), self.specs, to_tensor(lr).to(self.device), labels, patch)
        source = self.bundle.source
        return to_rgb8(output.cpu()[..., : source.height, : source.width])

    def frames(self) -> Iterator[PlayedFrame]:
        """All frames in order, flat memory.

        Raises:
            BundleError: the stream and the map do not have the source's number of frames.
        """
        source, low = self.bundle.source, probe(self.bundle.low_resolution)
        count = 0
        labels = self.labels()
        tick = low.time_base / source.time_base
        for frame in read_frames(self.bundle.low_resolution, low):
            try:
                mine = next(labels, None)
            except routing.RoutingError as error:
                raise BundleError(str(error)) from error
            count += 1
            if mine is None or count > source.frames:
                raise BundleError(f"The bundle says {source.frames} frames; its map or its stream has another number.")
            yield PlayedFrame(self.enlarge(frame.rgb, mine), round(frame.pts * tick), round(frame.duration * tick))
        if count != source.frames or (self.config.num_experts > 1 and next(labels, None) is not None):
            raise BundleError(f"The bundle says {source.frames} frames; its map or its stream has another number.")


class PlayedFrame(NamedTuple):
    """rgb (height, width, 3) uint8; time stamp and duration in units of the source's time base."""

    rgb: np.ndarray
    pts: int
    duration: int


def decode(
    bundle: Path_ | Player,
    output: Path_,
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
        ValueError: the output lies in the bundle or is its stream.
    """
    player = bundle if isinstance(bundle, Player) else Player(bundle)
    source, output = player.bundle.source, Path(output)
    if output.resolve().parent == player.bundle.path.resolve():
        raise ValueError(f"{str(output)!r} lies inside the bundle: write somewhere else.")
    crf = VISUALLY_LOSSLESS.get(codec, "10") if quality is None else str(quality)
    options = {} if codec == "ffv1" else {"crf": crf}
    if preset is not None:
        options["preset"] = preset
    size = (source.width, source.height)
    with VideoWriter(
        output, source, size, codec, output_pixel_format(source, codec), options, player.bundle.low_resolution
    ) as writer:
        for frame in islice(player.frames(), max_frames):
            writer.write(*frame)
            if progress is not None:
                progress(1)
    return output


def output_pixel_format(source: VideoInfo, codec: str) -> str:
    """The source's chroma, where the codec and the size can have it."""
    if codec == "libsvtav1":
        return "yuv420p"
    even = source.width % 2 == source.height % 2 == 0
    halved = any(mark in source.pixel_format for mark in ("420", "nv12", "nv21", "411", "410"))
    return "yuv420p" if halved and even else "yuv444p"
