"""Whether a bundle breaks even: is it smaller than its source, and does it play better than bicubic enlargement?"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from hf_efficient.video.files.reader import VideoInfo, read_frames
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.patches import psnr, to_rgb8, to_tensor
from hf_efficient.video.play.player import Player

logger = logging.get_logger(__name__)
SAMPLES = 12  # frames that are compared, spread over the video


def warn_before(source: Path, info: VideoInfo, steps: int, network_bytes: int) -> None:
    """Warn, before any work, of a bundle that can hardly break even.

    Args:
        source: the video.
        info: its properties.
        steps: of training.
        network_bytes: of all networks on disk.
    """
    size = source.stat().st_size
    both = f"the networks alone take {network_bytes:,} bytes, the source has {size:,}"
    if info.frames == 1:
        logger.warning(
            f"{str(source)!r} is a single image, and {steps} steps of training are for this one frame; {both}. "
            "An image codec (AVIF, WebP) takes seconds and fewer bytes."
        )
    elif 2 * network_bytes > size:
        logger.warning(
            f"The bundle of {str(source)!r} will hardly be smaller than it: {both}. Give narrower networks "
            "(num_features, --num-features), weight_dtype='int8', or keep the source."
        )


def compare_with_bicubic(bundle: Path, source: Path, info: VideoInfo, device: torch.device) -> dict[str, Any]:
    """PSNR of some frames from all over the video, pooled: as played by the bundle, and by bicubic enlargement.

    Args:
        bundle: the folder.
        source: the video it was made from.
        info: its properties.
        device: where the networks run.

    Returns:
        "frames", how many were compared; "psnr" and "psnr_bicubic", dB of whole frames.
    """
    player = Player(bundle, device)
    every = max(1, player.bundle.source.frames // SAMPLES)

    def some(frames: Any) -> Any:
        return islice(frames, 0, None, every)

    low = read_frames(player.bundle.low_resolution)
    errors: list[tuple[float, float]] = []
    for truth, small, labels in zip(
        some(read_frames(source, info)), some(low), some(player.labels()), strict=False
    ):  # fmt: skip
        bicubic = to_rgb8(upsample_bicubic(to_tensor(small.rgb), player.geometry.scale))
        pair = player.enlarge(small.rgb, labels), bicubic[: info.height, : info.width]
        errors.append(tuple(float(np.square((x.astype(np.float32) - truth.rgb) / 255).mean()) for x in pair))  # type: ignore[arg-type]
    played, enlarged = np.mean(errors, 0).tolist()
    return {"frames": len(errors), "psnr": round(psnr(played), 4), "psnr_bicubic": round(psnr(enlarged), 4)}


def verdicts(manifest: dict[str, Any], total: int) -> list[str]:
    """Sentences that say why a bundle does not break even; none if it does.

    Args:
        manifest: bundle.json.
        total: bytes of all its files.
    """
    found, size = [], manifest["source"]["bytes"]
    if total >= size:
        found.append(
            f"This bundle's folder has {total:,} bytes, {total / max(size, 1):.2f} times its source's {size:,}: "
            "sending the source costs less and loses nothing."
        )
    compared = manifest.get("compared")
    if compared and compared["psnr"] <= compared["psnr_bicubic"]:
        found.append(
            f"This bundle is worse than bicubic enlargement of its own stream: {compared['psnr']:.2f} dB against "
            f"{compared['psnr_bicubic']:.2f} on {compared['frames']} frames. Train for more steps, or send the stream "
            "alone."
        )
    return found


def total_bytes(folder: Path) -> int:
    """Bytes of all files of a bundle, bundle.json, index and card included."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
