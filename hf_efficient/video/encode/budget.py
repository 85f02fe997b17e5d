"""A bit rate, spent in the best way: a small stream and a general network, at each scale, or a codec alone.

For each scale and codec the stream gets the best constant quality that fits, with room for a delta; it is judged as the
general network enlarges it, which needs no training. Each codec alone gets the best quality that fits at full size. The
best is taken: in PSNR of luma on sampled frames, or in VMAF of all. The delta is trained afterwards and can only add to
its scale: so a codec alone is taken where it may be behind by what a delta gains.
"""

from __future__ import annotations

import math
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_efficient.checks import check_choice
from hf_efficient.files import copy_file
from hf_efficient.video.codecs import CODECS
from hf_efficient.video.files.reader import StrPath, VideoInfo, probe, read_frames
from hf_efficient.video.measure.rate_distortion import encode_at_size
from hf_efficient.video.measure.vmaf import vmaf_of_file, vmaf_of_frames
from hf_efficient.video.networks.backbones.luma import luma_error
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.inference import enlarge_whole
from hf_efficient.video.networks.spec import GENERAL_SCALES
from hf_efficient.video.patches import psnr, to_rgb8, to_tensor
from hf_efficient.video.settings import FitSettings

from .rate_control import SAMPLES, Trial, bytes_at, written_rate

MANIFEST_BYTES = 800  # bundle.json, generously
CONFIG_BYTES = 200  # config.json
DELTA_BYTES, DELTA_SHARE = 2048, 0.04  # room for a delta: the less of the two, of the whole for the second
DEFAULTS = {"method": "delta", "lr_codec": "libsvtav1"}
UNITS = {"psnr": "dB of luma", "vmaf": "VMAF"}
MEASURES = tuple(UNITS)


@dataclass(frozen=True)
class Offer:
    """What a rate buys.

    Args:
        name: of scale and codec, or of the codec alone.
        settings: of the fit; None for a codec alone.
        file: the stream, or the codec's file.
        quality: the larger, the better.
    """

    name: str
    settings: FitSettings | None
    file: Path
    quality: float


def spend(
    source: StrPath,
    rate: float,
    plain: Path,
    given: dict[str, Any] | None = None,
    log: Callable[[str], object] = print,
    optimize: str = "psnr",
    codecs: Sequence[str] = tuple(CODECS),
) -> FitSettings | None:
    """Choose scale, codec and quality for a bit rate; where a codec alone is best, write its file.

    Args:
        source: the video.
        rate: bits per second, sound and subtitles included.
        plain: the file that is written if a codec alone is best.
        given: fields of FitSettings that are fixed.
        log: called with a line on each offer.
        optimize: "psnr", of luma on sampled frames, or "vmaf", of all frames.
        codecs: those that are tried, unless one is given; a codec that does not know the given preset is left out.

    Returns:
        Settings for `fit_video`; None if `plain` was written.

    Raises:
        ValueError: nothing fits, or a setting is out of range.
        ImportError: VMAF is asked for, and imageio-ffmpeg is not installed.
    """
    check_choice("optimize", optimize, MEASURES)
    if given and "lr_quality" in given:
        raise ValueError(f"lr_quality={given['lr_quality']!r}: the budget chooses it. Leave out one of the two.")
    base, tried = _base(given or {}, codecs)
    info = probe(source, base.alpha, base.interlaced)
    total = bytes_at(rate, info.seconds)
    with tempfile.TemporaryDirectory() as folder:
        walked = list(_offers(source, info, base, given or {}, tried, total, optimize, Path(folder), plain.suffix))
        found = [offer for offer in walked if isinstance(offer, Offer)]
        if not found:
            misses = [miss for miss in walked if isinstance(miss, int)]
            more = f"Give {written_rate(min(misses), info.seconds)} or more." if misses else (
                f"No codec of {', '.join(tried)} takes frames {info.width} pixels across.")  # fmt: skip
            raise ValueError(f"{rate / 1000:g} kbit/s are too few ({total} bytes) at every scale. {more}")
        best = max(found, key=lambda offer: offer.quality)
        for offer in found:
            size = offer.file.stat().st_size
            mark = "->" if offer is best else "  "
            log(f"{mark} {offer.name}: {size:,} bytes, {offer.quality:.2f} {UNITS[optimize]}")
        if best.settings is None:
            copy_file(best.file, plain)
    return best.settings


def _base(given: dict[str, Any], codecs: Sequence[str]) -> tuple[FitSettings, list[str]]:
    """What all offers have in common, and the codecs to try."""
    if "lr_codec" in given:
        return FitSettings(**{**DEFAULTS, **given}), [given["lr_codec"]]
    preset = given.get("lr_preset", "")
    tried = [codec for codec in codecs if not preset or preset in CODECS[codec].presets]
    if not tried:
        raise ValueError(f"lr_preset={preset!r} is known to none of {', '.join(codecs)}: leave it out.")
    return FitSettings(**{**DEFAULTS, **given, "lr_codec": tried[0]}), tried


def _offers(
    source: StrPath, info: VideoInfo, base: FitSettings, given: dict[str, Any], codecs: Sequence[str], total: int,
    optimize: str, folder: Path, suffix: str,
) -> Iterator[Offer | int]:  # fmt: skip
    """Every scale with every codec, and the codecs alone: what each offers, or the bytes that it would need."""
    for scale in (base.scale,) if "scale" in given else GENERAL_SCALES:
        (folder / str(scale)).mkdir()
        trial = Trial(source, info, replace(base, scale=scale), info.frames, folder / str(scale))
        for codec in codecs:
            if trial.geometry.lr_width >= CODECS[codec].narrowest:
                yield small(trial.with_codec(codec), total, optimize)
    for codec in (codec for codec in codecs if info.width >= CODECS[codec].narrowest):
        yield full_size(source, info, folder / f"{codec}{suffix}", codec, total, optimize)


def small(trial: Trial, total: int, optimize: str) -> Offer | int:
    """The best quality of one scale and codec that fits; or the bytes that its worst would need."""
    room = min(DELTA_BYTES, int(DELTA_SHARE * total))
    left, settings = total - room - MANIFEST_BYTES - CONFIG_BYTES, trial.settings
    worst = CODECS[settings.lr_codec].worst
    quality = bisect_left(range(worst + 1), True, 1, key=lambda q: trial.stream(q).stat().st_size <= left)
    if quality > worst:
        least = trial.stream(worst).stat().st_size + MANIFEST_BYTES + CONFIG_BYTES
        return min(least + DELTA_BYTES, math.ceil(least / (1 - DELTA_SHARE)))  # with the room that is kept then
    stream = trial.stream(quality)
    chosen = replace(
        settings, lr_quality=quality, model_bytes=total - stream.stat().st_size - MANIFEST_BYTES
    )  # fmt: skip
    name = f"x{settings.scale} by the general network, {settings.lr_codec} crf {quality}, before its delta"
    found = _judged(lambda every: _played(stream, settings, trial.info, every), trial.source, trial.info, optimize)
    return Offer(name, chosen, stream, found)


def full_size(
    source: StrPath, info: VideoInfo, target: Path, codec: str, total: int, optimize: str
) -> Offer | int:  # fmt: skip
    """A codec alone at the best quality that fits; or the bytes of its worst."""
    size, _ = encode_at_size(source, info, target, codec, total)
    if size > total:
        return size

    def coded(every: int) -> Iterator[np.ndarray]:
        return (frame.rgb for frame in islice(read_frames(target), 0, None, every))

    return Offer(f"{codec} alone", None, target, _judged(coded, source, info, optimize, target))


def _judged(
    shown: Callable[[int], Iterator[np.ndarray]], source: StrPath, info: VideoInfo, optimize: str,
    file: Path | None = None,
) -> float:  # fmt: skip
    """VMAF of all frames, or PSNR of luma on some; `shown` gives every so many-th, `file` holds them if one does."""
    if optimize == "vmaf":
        return (vmaf_of_file(file, source) if file else vmaf_of_frames(shown(1), info, source))["vmaf"]
    every = -(-info.frames // SAMPLES)
    return _luma_psnr(shown(every), source, info, every)


def _played(stream: Path, settings: FitSettings, info: VideoInfo, every: int = 1) -> Iterator[np.ndarray]:
    """Every `every`-th frame of a stream as the general network enlarges it, (H, W, 3) uint8."""
    general = general_network(settings.scale, settings.network(0).num_features)
    net = general.load()
    for frame in islice(read_frames(stream), 0, None, every):
        with torch.no_grad():
            large = enlarge_whole(net, general.spec, to_tensor(frame.rgb))
        yield to_rgb8(large[..., : info.height, : info.width])


def _luma_psnr(played: Iterator[np.ndarray], source: StrPath, info: VideoInfo, every: int) -> float:
    """dB, errors pooled over the frames."""
    truth = islice(read_frames(source, info), 0, None, every)
    errors = [float(luma_error(to_tensor(a), to_tensor(b.rgb))) for a, b in zip(played, truth, strict=False)]
    return psnr(float(np.mean(errors)))
