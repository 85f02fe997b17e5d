"""Side data of frames: display matrix, mastering display, light levels, stereo layout."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hf_efficient.reading import Fields, is_whole

# x264's frame-packing for AVStereo3DType: side by side, top and bottom, in turns, checkerboard, lines, columns
PACKING = {1: 3, 2: 4, 3: 5, 4: 0, 6: 2, 7: 1}
KEPT = ("DISPLAYMATRIX", "MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL", "STEREO3D")
# About the coding of one file, not about the film; film grain is in the decoded pixels
OF_THE_CODING = (
    "SEI_UNREGISTERED", "MOTION_VECTORS", "VIDEO_ENC_PARAMS", "REGIONS_OF_INTEREST", "FILM_GRAIN_PARAMS",
    "GOP_TIMECODE", "VIDEO_HINT",
)  # fmt: skip


@dataclass(frozen=True)
class SideData:
    """Side data of a video's first frame; a field that it does not carry is empty.

    Args:
        display_matrix: FFmpeg's nine numbers: how a player turns and mirrors frames.
        mastering: red, green, blue and white point (x, y in units of 1/50000), then the brightest and the darkest
            luminance (1/10000 cd/m²), of the display that the video was graded on (SMPTE ST 2086).
        light: the brightest pixel and the brightest mean of a frame, cd/m² (CTA-861.3).
        stereo: FFmpeg's number for the layout of two views in a frame; 0 is one view.
    """

    display_matrix: tuple[int, ...] = ()
    mastering: tuple[int, ...] = ()
    light: tuple[int, ...] = ()
    stereo: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields that are not empty."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items() if v}

    @classmethod
    def from_json(cls, values: object) -> SideData:
        """The inverse of `to_json`.

        Raises:
            ValueError: a field is of another type or length, or out of range.
        """
        fields, lengths = Fields(values, "source: side"), {"display_matrix": 9, "mastering": 10, "light": 2}
        found: dict[str, Any] = {}
        for name, length in lengths.items():
            if name in fields.values:
                least = -(2**31) if name == "display_matrix" else 0
                numbers = fields.items(name, length)
                if len(numbers) != length or not all(is_whole(n) and least <= n < 2**31 for n in numbers):
                    raise fields.wrong(name, f"{length} whole numbers of 32 bits")
                found[name] = tuple(numbers)
        return cls(**found, stereo=fields.whole("stereo", 0, 255) if "stereo" in fields.values else 0)

    def options(self, codec: str) -> dict[str, str]:
        """Options by which an encoder writes it. Rotation is written by the container."""
        parts = []
        x, name = self.mastering, {"libx265": "master-display", "libx264": "mastering-display"}.get(codec[:7])
        if x and name:
            parts.append(f"{name}=G({x[2]},{x[3]})B({x[4]},{x[5]})R({x[0]},{x[1]})WP({x[6]},{x[7]})L({x[8]},{x[9]})")
        elif x and codec == "libsvtav1":
            g, b, r, w = (f"({x[i] / 5e4:.5f},{x[i + 1] / 5e4:.5f})" for i in (2, 4, 0, 6))
            parts.append(f"mastering-display=G{g}B{b}R{r}WP{w}L({x[8] / 1e4:.4f},{x[9] / 1e4:.4f})")
        light = {"libx265": "max-cll", "libx264": "cll", "libsvta": "content-light"}.get(codec[:7])
        if self.light and light:
            parts.append(f"{light}={self.light[0]},{self.light[1]}")
        if self.stereo in PACKING and codec.startswith("libx264"):
            parts.append(f"frame-packing={PACKING[self.stereo]}")
        option = {"libx264": "x264-params", "libx265": "x265-params", "libsvta": "svtav1-params"}.get(codec[:7])
        return {option: ":".join(parts)} if option and parts else {}

    def missing(self, kept: SideData) -> list[str]:
        """The parts of this side data that a file lacks, in words."""
        names = {"display_matrix": "how frames are turned", "mastering": "mastering display",
                 "light": "content light level", "stereo": "two views in a frame"}  # fmt: skip
        # encoders round the numbers of a display; a matrix is written or not
        lost = {name for name in names if getattr(self, name) and not getattr(kept, name)}
        if self.display_matrix and self.display_matrix[:6] != kept.display_matrix[:6]:
            lost.add("display_matrix")
        return [text for name, text in names.items() if name in lost]


NOTHING = SideData()


def side_data(frame: Any) -> tuple[SideData, list[str]]:
    """The side data of a decoded frame, and the names of what is not kept."""
    try:
        found = {data.type.name: bytes(data) for data in frame.side_data}
    except ValueError:  # PyAV does not know a kind and gives none at all
        return NOTHING, ["side data of a new kind"]
    matrix = found.get("DISPLAYMATRIX", b"")
    kept = SideData(
        display_matrix=struct.unpack("=9i", matrix[:36]) if len(matrix) >= 36 else (),
        mastering=_mastering(found.get("MASTERING_DISPLAY_METADATA", b"")),
        light=struct.unpack("=2I", found["CONTENT_LIGHT_LEVEL"][:8]) if "CONTENT_LIGHT_LEVEL" in found else (),
        stereo=struct.unpack("=i", found["STEREO3D"][:4])[0] if "STEREO3D" in found else 0,
    )
    others = [name.lower().replace("_", " ") for name in found if name not in (*KEPT, *OF_THE_CODING)]
    return kept, sorted(others)


def _mastering(data: bytes) -> tuple[int, ...]:
    """AVMasteringDisplayMetadata: twelve rationals, then which of them count."""
    if len(data) < 88:
        return ()
    numbers = struct.unpack("=20i2i", data[:88])
    if not (numbers[20] and numbers[21]) or 0 in numbers[1:20:2]:
        return ()
    r = [Fraction(a, b) for a, b in zip(numbers[0:20:2], numbers[1:20:2], strict=True)]
    return (*(round(value * 50_000) for value in r[:8]), round(r[9] * 10_000), round(r[8] * 10_000))
