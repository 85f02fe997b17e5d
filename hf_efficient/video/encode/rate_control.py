"""Rate control: scale, number and width of networks, and quality of the stream that fit a bit rate."""

from __future__ import annotations

import copy
import math
import re
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_efficient.video.codecs import CODECS
from hf_efficient.video.files.reader import Frame, StrPath, VideoInfo, probe, read_frames
from hf_efficient.video.methods.stdo import MOST_CHUNKS
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.networks.spec import SCALES
from hf_efficient.video.networks.weights import stored_bytes
from hf_efficient.video.patches import Geometry, pad_to_grid, patch_errors, psnr, round8, to_tensor
from hf_efficient.video.routing import planes
from hf_efficient.video.settings import AUTO, FitSettings

from .low_resolution import downscaled, made_for, stream_name, write_stream

HEADER_BYTES = 4096  # of safetensors and JSON, generously
# From benchmarks/video/stdo_rate.py: an AV1 stream gives the best bundles of a rate, with networks of about a tenth
# of the bits; 8-bit weights cost under 0.1 dB and half the bytes.
MEASURED = {"method": "jstdo", "weight_dtype": "int8", "lr_codec": "libsvtav1"}
NETWORK_SHARE = 0.1
WIDTHS = (32, 24, 16, 12, 8, 6, 4)
SAMPLES = 16  # frames that a scale is judged by
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


def parse_rate(text: str) -> float:
    """Bits per second of "1.5Mbps", "800k", "800 kbit/s" or "250000".

    Raises:
        ValueError: another form, or not positive.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kKmMgG]?)\s*(bps|bit/s|bits/s)?\s*", text)
    value = 0.0
    if found:
        value = float(found[1]) * UNITS[found[2].lower()] if found[1].count(".") < 2 and found[1] != "." else 0.0
    if value <= 0:
        raise ValueError(f"budget={text!r} is not a bit rate; write 1.5Mbps, 800kbps or 250000.")
    return value


def bytes_at(rate: float, seconds: float) -> int:
    """What a video of so many seconds may have at a rate in bits per second."""
    return int(rate * seconds / 8)


def written_rate(total: int, seconds: float) -> str:
    """The least rate, in tenths of a kilobit, at which a video of so many seconds has so many bytes."""
    tenths = math.ceil(total * 8 / seconds / 100)
    while bytes_at(parse_rate(written := f"{tenths / 10:.1f}kbps"), seconds) < total:  # by a rounding of floats
        tenths += 1
    return written


class TooFew(ValueError):
    """Bytes that do not suffice; `least` would."""

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least


def settings_for_rate(
    source: StrPath, rate: float, given: dict[str, Any] | None = None, log: Callable[[str], object] = print
) -> FitSettings:
    """Choose settings so that low-resolution stream, networks, map and copied sound fit into a bit rate.

    For each scale, the networks take at most NETWORK_SHARE of the bits, and the stream gets the best constant quality
    that fits the rest, by bisection. It takes the scale whose stream, enlarged by bicubic, is nearest to the source; in
    benchmarks/video/stdo_rate.py that is the scale that is best after training. Nothing is trained.

    Args:
        source: the video.
        rate: bits per second, sound and subtitles included.
        given: fields of FitSettings that are fixed; "method" is one that sends its networks whole. The others among
            scale, num_features, num_chunks (for method "stdo"), weight_dtype ("int8") and lr_codec ("libsvtav1") are
            chosen, and always lr_quality.
        log: called with a line on each scale: what was chosen, and what the other scales would have given.

    Raises:
        ValueError: not even the narrowest network and the worst quality fit; or a setting is out of range.
    """
    if given and "lr_quality" in given:
        raise ValueError(f"lr_quality={given['lr_quality']!r}: the budget chooses it. Leave out one of the two.")
    given = {**MEASURED, **(given or {})}
    base = FitSettings(**given)
    info = probe(source, base.alpha, base.interlaced)
    frames, total = info.frames, bytes_at(rate, info.seconds)
    found: dict[float, Fitting] = {}
    misses: list[str] = []
    enough: list[int] = []
    for scale in (base.scale,) if "scale" in given else SCALES:
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(source, info, replace(base, scale=scale), frames, Path(folder))
            try:
                found[scale] = trial.fit(total, "num_features" not in given)
            except TooFew as error:
                misses.append(f"at x{scale} {error}")
                enough.append(error.least)
    if not found:
        raise ValueError(
            f"{rate / 1000:g} kbit/s are too few ({total} bytes): {'; '.join(misses)}. Give "
            f"{written_rate(min(enough), info.seconds)} or more."
        )
    best = max(found, key=lambda scale: found[scale].psnr)
    for scale, fitting in found.items():
        s = fitting.settings
        k = f"{s.num_chunks} x " if s.assignment.per_chunk and s.num_chunks != AUTO else ""
        log(
            f"{'->' if scale == best else '  '} x{scale}: {k}{s.backbone} of width {s.num_features}, {s.lr_codec} crf "
            f"{s.lr_quality}, {fitting.psnr:.2f} dB by bicubic before training"
        )
    return found[best].settings


@dataclass(frozen=True)
class Fitting:
    """Settings that fit, and the PSNR of their stream enlarged by bicubic, over the sampled frames."""

    settings: FitSettings
    psnr: float


class Trial:
    """One scale. The downscaled video is kept without loss; each quality that is tried encodes it again."""

    def __init__(self, source: StrPath, info: VideoInfo, settings: FitSettings, frames: int, folder: Path) -> None:
        self.source, self.info, self.settings, self.folder, self.frames = source, info, settings, folder, frames
        self.geometry = Geometry.choose(info.width, info.height, settings.scale)
        self.every = -(-frames // SAMPLES)
        self.suffix = Path(stream_name(info)).suffix
        self.lossless = folder / f"lossless{self.suffix}"
        lossless = replace(settings, lr_quality=0, lr_codec="libx264", lr_preset="")  # a preset is of its codec
        small = downscaled(read_frames(source, info), self.geometry, made_for(settings, torch.device("cpu")))
        write_stream(source, info, small, self.geometry, lossless, self.lossless)

    def with_codec(self, codec: str) -> Trial:
        """The same scale, its streams by another codec."""
        other = copy.copy(self)
        other.settings = replace(self.settings, lr_codec=codec)
        return other

    def fit(self, total: int, choose_width: bool) -> Fitting:
        """The best quality of the stream that fits into `total` bytes together with the networks.

        Raises:
            TooFew: nothing fits.
        """
        base = self.settings
        if base.assignment.sample_suffices and base.num_chunks == AUTO:
            base = replace(base, num_chunks=base.assignment.auto_chunks(self.errors(), base.steps))
        settings = widest(base, total) if choose_width else base
        left = total - self.beside(settings)
        best, worst = 1, CODECS[settings.lr_codec].worst
        quality = bisect_left(range(worst + 1), True, best, key=lambda q: self.stream(q).stat().st_size <= left)
        if quality > worst:
            least = self.stream(worst).stat().st_size
            message = f"networks take {network_bytes(settings)} bytes and the stream at its worst {least}"
            enough = total
            while self.beside(settings) + least > enough:  # more bytes may choose a wider network
                enough = self.beside(settings) + least
                settings = widest(base, enough) if choose_width else base
            raise TooFew(message, enough)
        return Fitting(replace(settings, lr_quality=quality), self.bicubic_psnr(self.stream(quality)))

    def beside(self, settings: FitSettings) -> int:
        """Bytes of all but the stream, at most."""
        return network_bytes(settings) + self.map_bytes(settings) + HEADER_BYTES

    def map_bytes(self, settings: FitSettings) -> int:
        """An upper bound of the packed map's size."""
        return self.frames * planes(most_networks(settings)) * -(-self.geometry.rows * self.geometry.columns // 8)

    def stream(self, quality: int) -> Path:
        """The stream at a constant quality, copied sound included; encoded when it is first asked for."""
        path = self.folder / f"{self.settings.lr_codec}-{quality}{self.suffix}"
        if not path.exists():
            settings = replace(self.settings, lr_quality=quality)
            write_stream(self.source, self.info, read_frames(self.lossless), self.geometry, settings, path)
        return path

    def samples(self, stream: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Sampled frames of a stream enlarged by bicubic, and those of the source, (1, 3, s·lr_height, s·lr_width)."""

        def each(frames: Iterator[Frame]) -> Iterator[torch.Tensor]:
            return (to_tensor(frame.rgb) for frame in islice(frames, 0, None, self.every))

        for small, large in zip(each(read_frames(stream)), each(read_frames(self.source, self.info)), strict=False):
            yield upsample_bicubic(small, self.settings.scale), pad_to_grid(large, self.geometry)

    def errors(self) -> np.ndarray:
        """(n,) error of bicubic enlargement on every patch of the sampled frames."""
        errors = [patch_errors(enlarged, truth, self.geometry) for enlarged, truth in self.samples(self.lossless)]
        return torch.cat(errors).numpy()

    def bicubic_psnr(self, stream: Path) -> float:
        """PSNR of a stream enlarged by bicubic, in dB."""
        height, width = self.info.height, self.info.width
        errors = [
            ((round8(enlarged) - round8(truth))[..., :height, :width] / 255).square().mean()
            for enlarged, truth in self.samples(stream)
        ]
        return psnr(float(torch.stack(errors).mean()))


def widest(settings: FitSettings, total: int) -> FitSettings:
    """The same with the widest network that takes its share of the bytes at most, or the narrowest there is."""
    sizes = (replace(settings, num_features=width) for width in WIDTHS)
    fitting = (s for s in sizes if network_bytes(s) <= NETWORK_SHARE * total)
    return next(fitting, replace(settings, num_features=WIDTHS[-1]))


def most_networks(settings: FitSettings) -> int:
    """Networks of a bundle; "auto" counts as the most chunks there can be."""
    if not settings.assignment.per_chunk:
        return 1
    return MOST_CHUNKS if isinstance(settings.num_chunks, str) else settings.num_chunks


def network_bytes(settings: FitSettings) -> int:
    """Bytes of all networks on disk, at most."""
    each = (settings.network(m if not settings.same_networks else 0) for m in range(most_networks(settings)))
    return sum(stored_bytes(spec.build(), settings.weight_dtype) for spec in each)
