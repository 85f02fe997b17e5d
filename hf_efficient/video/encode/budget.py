"""A bit rate, spent in the best way: a small stream and a general network, at each scale, or a codec alone.

For each scale the stream gets the best constant quality that fits, with room for a delta; it is judged as the general
network enlarges it, which needs no training. The codec alone gets the best quality that fits at full size. The best in
PSNR of luma is taken. The delta is trained afterwards and can only add to its scale: so a codec alone is taken where it
may be behind by what a delta gains, 0.05 to 0.4 dB where it was measured.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_efficient.files import copy_file
from hf_efficient.video.codecs import CODECS
from hf_efficient.video.files.reader import StrPath, VideoInfo, probe, read_frames
from hf_efficient.video.measure.rate_distortion import encode_at_size
from hf_efficient.video.networks.backbones.luma import luma_error
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.inference import enlarge
from hf_efficient.video.networks.spec import SCALES
from hf_efficient.video.patches import psnr, round8, to_tensor
from hf_efficient.video.settings import FitSettings

from .rate_control import SAMPLES, Trial

MANIFEST_BYTES = 800  # bundle.json, generously
CONFIG_BYTES = 200  # config.json
DELTA_BYTES, DELTA_SHARE = 2048, 0.04  # room for a delta: the less of the two, of the whole for the second
DEFAULTS = {"method": "delta", "lr_codec": "libsvtav1"}


@dataclass(frozen=True)
class Offer:
    """What a rate buys.

    Args:
        name: "x2", ..., or the codec alone.
        settings: of the fit; None for a codec alone.
        bytes: of the stream, or of the codec's file.
        psnr: of luma, in dB, on sampled frames.
    """

    name: str
    settings: FitSettings | None
    bytes: int
    psnr: float


def spend(
    source: StrPath, rate: float, plain: Path, given: dict[str, Any] | None = None, log: Callable[[str], object] = print
) -> FitSettings | None:
    """Choose scale and quality for a bit rate; where a codec alone is best, write its file.

    Args:
        source: the video.
        rate: bits per second, sound and subtitles included.
        plain: the file that is written if a codec alone is best.
        given: fields of FitSettings that are fixed.
        log: called with a line on each offer.

    Returns:
        Settings for `fit_video`; None if `plain` was written.

    Raises:
        ValueError: nothing fits, or a setting is out of range.
    """
    if given and "lr_quality" in given:
        raise ValueError(f"lr_quality={given['lr_quality']!r}: the budget chooses it. Leave out one of the two.")
    base = FitSettings(**{**DEFAULTS, **(given or {})})
    info = probe(source, base.alpha, base.interlaced)
    total = int(rate * info.seconds / 8)
    found: list[Offer] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for scale in (base.scale,) if given and "scale" in given else SCALES:
            (folder / str(scale)).mkdir()
            found += small(Trial(source, info, replace(base, scale=scale), info.frames, folder / str(scale)), total)
        alone = folder / f"alone{plain.suffix}"
        found += full_size(source, info, alone, base.lr_codec, total)
        if not found:
            raise ValueError(
                f"{rate / 1000:.0f} kbit/s are too few ({total} bytes) at every scale. Give a larger budget."
            )
        best = max(found, key=lambda offer: offer.psnr)
        for offer in found:
            log(f"{'->' if offer is best else '  '} {offer.name}: {offer.bytes:,} bytes, {offer.psnr:.2f} dB of luma")
        if best.settings is None:
            copy_file(alone, plain)
    return best.settings


def small(trial: Trial, total: int) -> Iterator[Offer]:
    """The best quality of one scale that fits, if there is one."""
    room = min(DELTA_BYTES, int(DELTA_SHARE * total))
    left, settings = total - room - MANIFEST_BYTES - CONFIG_BYTES, trial.settings
    worst = CODECS[settings.lr_codec].worst
    quality = bisect_left(range(worst + 1), True, 1, key=lambda q: trial.stream(q).stat().st_size <= left)
    if quality > worst:
        return
    stream, width = trial.stream(quality), settings.network(0).num_features
    general = general_network(settings.scale, width)
    net, errors = general.load(), []
    with torch.no_grad():
        for lr, truth in _sampled(stream, trial.source, trial.info):
            large = enlarge([net], [general.spec], lr, None, (1, 1))
            errors.append(_luma_error(large, truth, trial.info))
    size = stream.stat().st_size
    chosen = replace(settings, lr_quality=quality, model_bytes=total - size - MANIFEST_BYTES)
    name = f"x{settings.scale} by the general network, {settings.lr_codec} crf {quality}, before its delta"
    yield Offer(name, chosen, size, psnr(float(np.mean(errors))))


def full_size(source: StrPath, info: VideoInfo, target: Path, codec: str, total: int) -> Iterator[Offer]:
    """The codec alone at the best quality that fits, if one does."""
    size, _ = encode_at_size(source, info, target, codec, total)
    if size <= total:
        errors = [_luma_error(coded, truth, info) for coded, truth in _sampled(target, source, info)]
        yield Offer(f"{codec} alone", None, size, psnr(float(np.mean(errors))))


def _sampled(stream: Path, source: StrPath, info: VideoInfo) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Frames of a stream and of the source, spread over the video."""
    every = -(-info.frames // SAMPLES)
    for a, b in islice(zip(read_frames(stream), read_frames(source, info), strict=False), 0, None, every):
        yield to_tensor(a.rgb), to_tensor(b.rgb)


def _luma_error(played: torch.Tensor, truth: torch.Tensor, info: VideoInfo) -> float:
    return float(luma_error(round8(played[..., : info.height, : info.width]) / 255, truth))
