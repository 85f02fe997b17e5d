"""Conversion between YUV and 8-bit RGB by tagged matrix, range and chroma siting, to the nearest level, without bias.

FFmpeg's swscale converts where it is right, with flags that are not its defaults (the tests compare it with zimg and
with floats). What it gets wrong is computed here: full range and RGB above 8 bits (it reads white as 1020 of 1023),
gray of limited range (it reads it as full), chroma in full range (it rounds down).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from hf_efficient.extras import extra

with extra("video"):
    import av
    from av.video.reformatter import Interpolation

from .headers import gives_chroma_siting

EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
UNSPECIFIED = 2  # "unspecified" of ITU-T H.273
BT601, BT709 = 5, 1
LIMITED_RANGE, FULL_RANGE = 1, 2
# Matrices of H.273 and the number by which swscale knows them; 0 is RGB, 3 reserved
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
OTHER_MATRICES = {
    8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE ST 2085", 12: "derived from primaries",
    13: "derived from primaries, constant luminance", 14: "ICtCp", 15: "IPT-PQ-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro",
}  # fmt: skip
# Luma of red and blue by swscale's number
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


@dataclass(frozen=True)
class ColorTags:
    """Color description as numbers of ITU-T H.273 (range: 0 unspecified, 1 limited, 2 full)."""

    space: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    range: int = 0

    def matrix(self, height: int) -> int:
        """The YUV matrix. Without a tag it is what players assume: BT.709 from 720 lines on, else BT.601."""
        return MATRICES.get(self.space, BT709 if height >= 720 else BT601)


class Relabelled:
    """Sets labels of frames (`setparams` of FFmpeg) that PyAV cannot set. Pixels stay.

    Args:
        labels: "chroma_location=left": the siting of chroma; "field_mode=prog": that frames are progressive. swscale
            uses both: it takes the chroma of each field of an interlaced frame separately.
    """

    def __init__(self, labels: str) -> None:
        self._labels = labels
        self._graphs: dict[tuple[str, int, int], Any] = {}

    def __call__(self, frame: Any) -> Any:
        """The frame; its time stamp and duration are for the caller to set."""
        kind = (frame.format.name, frame.width, frame.height)
        if kind not in self._graphs:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            graph.link_nodes(source, graph.add("setparams", self._labels), graph.add("buffersink")).configure()
            self._graphs[kind] = graph
        self._graphs[kind].push(frame)
        return self._graphs[kind].pull()


def chroma_is_centered(frame: Any) -> bool:
    """Whether swscale takes chroma to be sited between two columns, as it does where neither file nor codec gives it.

    PyAV does not show this label of a frame, so a small frame with the same labels is converted: one chroma sample of
    another color then appears in two columns equally, or around one.
    """
    if frame.format.chroma_width(64) == 64:
        return False
    side = 16 if frame.width != 16 else 32  # never the frame itself
    small = frame.reformat(width=side, height=side, format="yuv420p")
    for n, plane in enumerate(small.planes):
        levels = np.full((plane.height, plane.line_size), 128, np.uint8)
        if n == 2:
            levels[4, 4] = 255
        plane.update(levels.tobytes())
    row = to_rgb(small, BT601, LIMITED_RANGE)[8, :, 0].astype(int)
    return bool(abs(row[8] - row[9]) <= 2)


class CorrectLabels:
    """Corrects the labels of one stream's decoded frames where they are wrong or missing.

    Where neither file nor codec gives the siting of chroma, it is left-sited, as in players and zimg. A frame that is
    flagged as interlaced is progressive here: it was deinterlaced before, or its flag is wrong (interlaced="keep").
    """

    def __init__(self, stream: Any) -> None:
        self._in_question = not gives_chroma_siting(stream)
        self._silent: bool | None = None

    def __call__(self, frame: Any) -> Any:
        if self._silent is None:
            self._silent = self._in_question and chroma_is_centered(frame)
            self._relabelled = Relabelled("field_mode=prog" + ":chroma_location=left" * self._silent)
        return self._relabelled(frame) if self._silent or frame.interlaced_frame else frame


def to_rgb(frame: Any, matrix: int, color_range: int) -> np.ndarray:
    """(H, W, 3) uint8 of a decoded frame, by the given YUV matrix (swscale's number) and range (0: limited)."""
    pixels = frame.format
    bits = component_bits(pixels)
    full = color_range == FULL_RANGE or pixels.name.startswith("yuvj")
    packed = pixels.is_rgb or pixels.has_palette or pixels.is_bayer
    gray = sum(not component.is_alpha for component in pixels.components) < 3 and not packed and bits >= 8
    if (bits > 8 and (full or pixels.is_rgb)) or (gray and not full):
        return _by_float(frame, matrix, bits, limited=gray and not full)
    settings = {"src_colorspace": matrix, "src_color_range": FULL_RANGE if full else LIMITED_RANGE}
    if not packed:  # planes first: to packed RGB swscale has no fast and exact way
        frame = frame.reformat(format="gbrp", interpolation=EXACT, threads=1, **settings)
    return frame.reformat(format="rgb24", interpolation=EXACT, threads=1, **settings).to_ndarray()


def _by_float(frame: Any, matrix: int, bits: int, limited: bool) -> np.ndarray:
    """The same in floats, where swscale takes white for a shifted 255, or gray for full range."""
    deep = frame.reformat(
        format="gbrp16le", src_colorspace=matrix, src_color_range=FULL_RANGE, interpolation=EXACT, threads=1
    ).to_ndarray()
    black, white = (16 << 8, 235 << 8) if limited else (0, (1 << 16) - (1 << max(0, 16 - bits)))
    levels = (deep.astype(np.float32) - black) * (255 / (white - black))
    return np.rint(levels).clip(0, 255).astype(np.uint8)


class FromRGB:
    """Converts 8-bit RGB to the pixel format of an encoder.

    Args:
        pixel_format: FFmpeg's name.
        matrix: swscale's number.
        color_range: 2 is full, else limited.
    """

    def __init__(self, pixel_format: str, matrix: int, color_range: int) -> None:
        self.format, self.matrix = av.VideoFormat(pixel_format), matrix
        self.range = FULL_RANGE if color_range == FULL_RANGE else LIMITED_RANGE
        self._sited = Relabelled("chroma_location=left")

    @property
    def tags(self) -> dict[str, str]:
        """An encoder's options for the siting of chroma."""
        return {"chroma_sample_location": "left"} if self.format.chroma_width(64) < 64 else {}

    def __call__(self, rgb: np.ndarray) -> Any:
        """A frame of (H, W, 3) uint8; its chroma is sited left (docs/stdo.md)."""
        if self.format.is_rgb:
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            return frame if self.format.name == "rgb24" else self._reformatted(frame, 0)
        if self.range == LIMITED_RANGE:
            return self._reformatted(self._sited(av.VideoFrame.from_ndarray(rgb, format="rgb24")), 0)
        frame = av.VideoFrame.from_ndarray(full_range(rgb, self.matrix), format="yuv444p")
        return self._reformatted(self._sited(frame), FULL_RANGE)

    def _reformatted(self, frame: Any, source_range: int) -> Any:
        return frame.reformat(
            format=self.format, src_colorspace=self.matrix, dst_colorspace=self.matrix, src_color_range=source_range,
            dst_color_range=self.range, interpolation=EXACT, threads=1,
        )  # fmt: skip


def full_range(rgb: np.ndarray, matrix: int) -> np.ndarray:
    """(3, H, W) uint8 of Y'CbCr in full range, rounded to nearest, of (H, W, 3) uint8."""
    red, blue = LUMA[matrix]
    luma = np.array([red, 1 - red - blue, blue])
    rows = np.stack([luma, (np.array([0, 0, 1]) - luma) / (2 - 2 * blue), (np.array([1, 0, 0]) - luma) / (2 - 2 * red)])
    levels = rows.astype(np.float32) @ rgb.reshape(-1, 3).T.astype(np.float32)
    levels[1:] += 128
    return np.rint(levels).clip(0, 255).astype(np.uint8).reshape(3, *rgb.shape[:2])


def component_bits(pixel_format: Any) -> int:
    """Bits of the widest component."""
    return max(component.bits for component in pixel_format.components)
