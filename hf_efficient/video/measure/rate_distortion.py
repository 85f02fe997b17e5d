"""Rate and distortion: a codec alone at the size of a bundle, and the difference of two curves (BD-rate)."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import numpy as np

from hf_efficient.video.codecs import CODECS, encoder_options
from hf_efficient.video.files.reader import StrPath, VideoInfo, read_frames
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.patches import psnr


def encode_at_size(source: StrPath, info: VideoInfo, output: Path, codec: str, total: int) -> tuple[int, float]:
    """Encode the source by a codec alone, at the best constant quality whose file has at most `total` bytes.

    Args:
        source: the video; its sound is copied and counted, as in a bundle.
        info: what `probe` said of it.
        output: the file to write.
        codec: "libx264", "libx265" or "libsvtav1", at a slow preset.
        total: bytes.

    Returns:
        Bytes of the file, and its PSNR in dB (pooled over RGB frames). If no quality fits, the smallest file.
    """
    best, worst = 1, CODECS[codec].worst
    while best < worst:
        middle = (best + worst) // 2
        best, worst = (best, middle) if _encode(source, info, output, codec, middle) <= total else (middle + 1, worst)
    return encode_at_quality(source, info, output, codec, worst)


def encode_at_quality(
    source: StrPath, info: VideoInfo, output: Path, codec: str, quality: int, every: int = 1
) -> tuple[int, float]:
    """Encode the source by a codec alone, at a slow preset and a constant quality (crf).

    Args:
        source: the video.
        info: what `probe` said of it.
        output: the file to write.
        codec: FFmpeg's encoder.
        quality: crf.
        every: measure every `every`-th frame.

    Returns:
        Bytes of the file, and its PSNR in dB.
    """
    size = _encode(source, info, output, codec, quality)
    pairs = islice(zip(read_frames(output), read_frames(source, info), strict=True), 0, None, every)
    errors = [np.square((a.rgb.astype(np.float32) - b.rgb) / 255).mean(dtype=np.float64) for a, b in pairs]
    return size, psnr(float(np.mean(errors)))


def _encode(source: StrPath, info: VideoInfo, output: Path, codec: str, crf: int) -> int:
    options = encoder_options(codec, crf)
    pixel_format = "yuv420p" if info.width % 2 == info.height % 2 == 0 else "yuv444p"
    with VideoWriter(output, info, (info.width, info.height), codec, pixel_format, options, source) as writer:
        for frame in read_frames(source, info):
            writer.write(*frame)
    return os.path.getsize(output)


def bd_rate(anchor: list[tuple[float, float]], tested: list[tuple[float, float]]) -> float:
    """Bjøntegaard delta rate: mean difference of bits at equal PSNR, as a fraction (-0.1: ten percent fewer).

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
