"""Small made videos, and the public test clips where they were fetched (`python -m benchmarks.video.fetch_clips`)."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

CLIPS = Path(os.environ.get("HF_EFFICIENT_CLIPS", Path.home() / ".cache" / "hf_efficient" / "clips"))


def clip(name: str) -> Path:
    """A public clip, or the test is skipped."""
    path = CLIPS / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {CLIPS}: python -m benchmarks.video.fetch_clips fetches it")
    return path


def moving_frames(count: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: a smooth image with a textured square that moves over it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    coarse = rng.integers(0, 256, (height // 5 + 1, width // 5 + 1, 3))
    texture = np.kron(coarse, np.ones((5, 5, 1)))[:height, :width]  # sharp edges, which bicubic enlargement blurs
    frames = []
    for t in range(count):
        waves = 80 * np.sin((x + 3 * t) / 17), 80 * np.cos(y / 13), 60 * np.sin((x + y) / 23)
        frame = 127 + np.stack(waves, -1)
        side = min(height, width) // 3
        top, left = (t * 2) % max(1, height - side), (t * 3) % max(1, width - side)
        frame[top : top + side, left : left + side] = texture[:side, :side]
        frames.append(frame)
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def make_clip(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 12800),
    rate: int = 25,
    audio: str | None = None,
    rotation: int = 0,
    aspect: Fraction | None = None,
    color: tuple[int, int, int, int] | None = None,
    subtitles: Path | None = None,
) -> Path:
    """Encode frames, with PyAV alone (no code of the package)."""
    count, height, width = frames.shape[:3]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=rate, options=options or {"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = stream.time_base = time_base
        if aspect:
            stream.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        if color:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = color
        sound: Any = None
        if audio:
            sound = out.add_stream(audio, rate=48000)
            sound.layout = "mono"
        tick = round(1 / (rate * time_base))
        for t, rgb in enumerate(frames):
            frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame = frame.reformat(format=pixel_format, dst_colorspace=color[0] if color else None)
            frame.pts, frame.time_base = (pts[t] if pts is not None else t * tick), time_base
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
        if sound:
            wave = (0.3 * np.sin(np.arange(48000 * count // rate) * 0.05)).astype(np.float32)
            for start in range(0, len(wave), 1024):
                piece: Any = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
                for packet in sound.encode(piece):
                    out.mux(packet)
            for packet in sound.encode(None):
                out.mux(packet)
    return path


def packets(path: Path, kind: str) -> list[tuple[float, bytes]]:
    """(seconds, bytes) of every packet of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [
            (float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.pts is not None and p.time_base
        ]
