"""Bits: what a bundle costs, which one fits a budget, and what a codec alone makes of the same bits."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from hf_efficient.video.media import Path_, VideoInfo, probe, read_frames
from hf_efficient.video.patches import Geometry, psnr
from hf_efficient.video.settings import FitSettings
from hf_efficient.video.stream import stream_name, write_low_resolution
from hf_efficient.video.weights import stored_bytes
from hf_efficient.video.writing import VideoWriter, encoder_options

HEADER_BYTES = 4096  # of safetensors, JSON and the routing map, generously
NETWORK_SHARE = 0.25  # most of a budget that goes into networks: the stream carries what they work on
WIDTHS = (32, 24, 16, 12, 8, 6, 4)
QUALITIES = {"libx264": (1, 51), "libx265": (1, 51), "libsvtav1": (1, 63)}
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


def parse_rate(text: str) -> float:
    """Bits a second of "1.5Mbps", "800k", "800 kbit/s" or "250000".

    Raises:
        ValueError: another form, or not positive.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kKmMgG]?)\s*(bps|bit/s|bits/s)?\s*", text)
    value = 0.0
    if found:
        value = float(found[1]) * UNITS[found[2].lower()] if found[1].count(".") < 2 and found[1] != "." else 0.0
    if value <= 0:
        raise ValueError(f"budget {text!r} is not a bit rate; write 1.5Mbps, 800kbps or 250000.")
    return value


def network_bytes(settings: FitSettings) -> int:
    """Bytes of all networks on disk; "auto" counts as the most chunks there can be."""
    from hf_efficient.video.chunking import MOST_CHUNKS

    if settings.method in ("jstdo", "single"):
        count = 1
    else:
        count = MOST_CHUNKS if isinstance(settings.num_chunks, str) else settings.num_chunks
    each = (settings.network(m if not settings.same_networks else 0) for m in range(count))
    return sum(stored_bytes(spec.build(), settings.weight_dtype) for spec in each)


def fit_budget(source: Path_, settings: FitSettings, rate: float, log: Callable[[str], object] = print) -> FitSettings:
    """The settings with which low-resolution stream, networks and copied sound fit into a bit rate.

    The widest network that takes at most NETWORK_SHARE of the bits, then the best constant quality of the stream that
    fits what is left, found by bisection: each trial encodes the low-resolution video, which is cheap beside training.

    Args:
        source: the video.
        settings: everything else; its width and stream quality are replaced.
        rate: bits a second, sound and subtitles included.
        log: told what was chosen.

    Raises:
        ValueError: not even the narrowest network and the worst quality fit.
    """
    info = probe(source)
    seconds = info.seconds or (info.frames or sum(1 for _ in read_frames(source, info))) / info.rate
    total = int(rate * float(seconds) / 8)
    chosen = settings
    for width in WIDTHS:
        chosen = replace(settings, num_features=width)
        if network_bytes(chosen) <= NETWORK_SHARE * total:
            break
    left = total - network_bytes(chosen) - HEADER_BYTES
    best, worst = QUALITIES[settings.lr_codec]
    trial = 0
    with tempfile.TemporaryDirectory() as folder:
        least = _stream_bytes(source, info, replace(chosen, lr_quality=worst), Path(folder))
        if least > left:
            raise ValueError(
                f"{rate / 1000:.0f} kbit/s are too few: networks take {network_bytes(chosen)} of {total} bytes, and "
                f"the stream at its worst {least}. Give a larger budget, a larger scale or lr_codec='libx265'."
            )
        while best < worst:  # invariant: `worst` fits
            middle = (best + worst) // 2
            trial = _stream_bytes(source, info, replace(chosen, lr_quality=middle), Path(folder))
            best, worst = (best, middle) if trial <= left else (middle + 1, worst)
    log(f"{rate / 1000:.0f} kbit/s: {chosen.backbone} of width {chosen.num_features}, {chosen.lr_codec} crf {worst}")
    return replace(chosen, lr_quality=worst)


def _stream_bytes(source: Path_, info: VideoInfo, settings: FitSettings, folder: Path) -> int:
    """Size of the low-resolution stream with these settings, copied sound included."""
    path = folder / stream_name(info)
    geometry = Geometry.choose(info.width, info.height, settings.scale)
    write_low_resolution(source, info, read_frames(source, info), geometry, settings, path)
    return path.stat().st_size


def encode_at_size(source: Path_, info: VideoInfo, output: Path, codec: str, total: int) -> tuple[int, float]:
    """The source through a codec alone, at the best constant quality whose file has at most `total` bytes.

    Args:
        source: the video; its sound is copied and counted, as in a bundle.
        info: what `probe` said of it.
        output: the file to write.
        codec: "libx264", "libx265" or "libsvtav1", at a slow preset.
        total: bytes.

    Returns:
        Bytes of the file, and its PSNR in dB (pooled over RGB frames). The smallest file there is, where none fits.
    """
    best, worst = QUALITIES[codec]
    while best < worst:
        middle = (best + worst) // 2
        best, worst = (best, middle) if _encode(source, info, output, codec, middle) <= total else (middle + 1, worst)
    return encode_at_quality(source, info, output, codec, worst)


def encode_at_quality(
    source: Path_, info: VideoInfo, output: Path, codec: str, quality: int, every: int = 1
) -> tuple[int, float]:
    """The source through a codec alone, at a slow preset and a constant quality (crf): bytes, and PSNR in dB.

    The PSNR is measured on each so-manieth frame (`every`).
    """
    size = _encode(source, info, output, codec, quality)
    pairs = islice(zip(read_frames(output), read_frames(source, info), strict=True), 0, None, every)
    errors = [np.square((a.rgb.astype(np.float32) - b.rgb) / 255).mean(dtype=np.float64) for a, b in pairs]
    return size, psnr(float(np.mean(errors)))


def _encode(source: Path_, info: VideoInfo, output: Path, codec: str, crf: int) -> int:
    options = encoder_options(codec, crf)
    pixel_format = "yuv420p" if info.width % 2 == info.height % 2 == 0 else "yuv444p"
    with VideoWriter(output, info, (info.width, info.height), codec, pixel_format, options, source) as writer:
        for frame in read_frames(source, info):
            writer.write(*frame)
    return os.path.getsize(output)


def bd_rate(anchor: list[tuple[float, float]], tested: list[tuple[float, float]]) -> float:
    """Bjøntegaard's delta rate: mean difference of bits at equal PSNR, as a share (-0.1: ten percent fewer).

    Args:
        anchor: (bits, dB) points of the reference curve, at least two.
        tested: the same of the other curve.

    Returns:
        Mean over the common PSNR range of log-rate differences, linear between the points (a cubic fit overshoots);
        NaN without a common range.
    """
    curves = []
    for points in (anchor, tested):
        ordered = sorted((quality, np.log(bits)) for bits, quality in points)
        curves.append(np.array(ordered).T)
    low, high = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
    if low >= high:
        return float("nan")
    grid = np.linspace(low, high, 2001)
    return float(np.exp(np.mean(np.interp(grid, *curves[1]) - np.interp(grid, *curves[0]))) - 1)
