"""Whether a bundle is worth its bytes: said before the work where it can be known, and after it with the figures."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from hf_efficient.files import write_text
from hf_efficient.video.encode.rate_control import network_bytes
from hf_efficient.video.files.bundle import MANIFEST_NAME, source_to_json, write_manifest
from hf_efficient.video.files.card import model_card
from hf_efficient.video.files.reader import VideoInfo, read_frames
from hf_efficient.video.networks.backbones import upsample_bicubic
from hf_efficient.video.patches import psnr, to_rgb8, to_tensor
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import FitSettings

logger = logging.get_logger(__name__)
SAMPLES = 12  # frames that are compared, from all over the video


def say_before(source: Path, info: VideoInfo, settings: FitSettings) -> None:
    """Warn, before any work, of a bundle that can hardly be worth it."""
    networks, size = network_bytes(settings), source.stat().st_size
    told = f"the networks alone take {networks:,} bytes, the source has {size:,}"
    if info.frames == 1:
        logger.warning(
            f"{str(source)!r} is a single picture, and {settings.steps} steps of training are for this one frame; "
            f"{told}. An image codec (AVIF, WebP) takes seconds and fewer bytes."
        )
    elif 2 * networks > size:
        logger.warning(
            f"The bundle of {str(source)!r} will hardly be smaller than it: {told}. Give narrower networks "
            "(num_features, --num-features), weight_dtype='int8', or keep the source."
        )


def describe(
    draft: Path, stream: str, source: Path, info: VideoInfo, config: dict[str, Any], device: torch.device, **told: Any
) -> None:
    """Write bundle.json and the card of a draft that has all its other files, and warn of what it is not worth.

    Args:
        draft: the folder.
        stream: name of its low-resolution video.
        source: the video it was made of.
        info: what it is like.
        config: the model's.
        device: where the networks are run to compare them with bicubic enlargement.
        told: further fields of bundle.json; the number of `frames` there are among them.
    """
    record = source_to_json(info, source, told.pop("frames"))
    write_manifest(draft, stream, record, **told)
    write_manifest(draft, stream, record, **told, compared=beside_bicubic(draft, source, info, device))
    manifest, notes = json.loads((draft / MANIFEST_NAME).read_text(encoding="utf-8")), [""]
    for _ in range(3):  # the card tells its own size
        write_text(draft / "README.md", model_card(manifest, config, notes))
        notes = verdicts(manifest, total_bytes(draft))
    for sentence in notes:
        logger.warning(sentence)


def beside_bicubic(draft: Path, source: Path, info: VideoInfo, device: torch.device) -> dict[str, Any]:
    """PSNR of whole frames, pooled over some from all over the video: as played, and its stream by bicubic."""
    player = Player(draft, device)
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
    """Sentences on a bundle that is worse than doing nothing; none where it is not.

    Args:
        manifest: bundle.json.
        total: bytes of all its files.
    """
    found, size = [], manifest["source"]["bytes"]
    if total >= size:
        found.append(
            f"This bundle has {total:,} bytes in all, {total / max(size, 1):.2f} times its source's {size:,}: sending "
            "the source costs less and loses nothing."
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
    """Of all files of a bundle: what is sent of it as it lies there, bundle.json, index and card too."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
