"""FFmpeg's video encoders: presets, constant qualities, options. Without torch and PyAV."""

from __future__ import annotations

from dataclasses import dataclass

from hf_efficient.reading import is_whole, shown

_X26 = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")


@dataclass(frozen=True)
class Codec:
    """An encoder.

    Args:
        presets: its speeds.
        worst: its largest crf; crf runs from 0 (best) to this value.
        visually_lossless: the crf at which more bits improve neither what is seen nor the PSNR of networks.
        slow: the preset for streams that are sent.
        fast: the preset for decoded videos.
        narrowest: the smallest width that it is given.
    """

    presets: tuple[str, ...]
    worst: int
    visually_lossless: int
    slow: str
    fast: str
    narrowest: int = 1


CODECS = {
    "libx264": Codec(_X26, 51, 10, "slow", "medium"),
    "libx265": Codec(_X26, 51, 12, "slow", "medium", 64),  # narrower frames overrun its memory: the process may abort
    "libsvtav1": Codec(tuple(map(str, range(-1, 14))), 70, 12, "4", "8"),
}
LARGEST_CRF = 63  # that FFmpeg hands over; SVT-AV1 takes larger ones by its own parameters alone
# Encoder, pixel format and options that keep RGB bit for bit.
LOSSLESS = ("libx264rgb", "rgb24", {"qp": "0", "preset": "veryfast"})


def check_encoder(
    codec: str, quality: int | None, preset: str | None, names: tuple[str, str] = ("quality", "preset")
) -> None:
    """Refuse a quality or a preset that a codec does not have, before FFmpeg fails on it.

    Args:
        codec: FFmpeg's encoder; one that is not in `CODECS` is not checked.
        quality: its crf, or None.
        preset: its preset; None and "" mean our default.
        names: what the two settings are called in the message.

    Raises:
        ValueError: the codec has no such quality or preset.
    """
    if codec not in CODECS:
        return
    worst, presets = CODECS[codec].worst, CODECS[codec].presets
    if quality is not None and not (is_whole(quality) and 0 <= quality <= worst):
        raise ValueError(f"{names[0]}={shown(quality)} is out of range; expected a whole number from 0 to {worst}.")
    if preset and preset not in presets:
        raise ValueError(f"{names[1]}={preset!r} is not known to {codec}; expected one of {', '.join(presets)}.")


def encoder_options(codec: str, quality: int, preset: str = "") -> dict[str, str]:
    """FFmpeg's options for a constant quality (crf) and a preset; "" is the codec's slow one."""
    slow = CODECS[codec].slow if codec in CODECS else ""
    options = {"crf": str(quality), "preset": preset or slow}
    if codec == "libsvtav1" and quality > LARGEST_CRF:
        options |= {"crf": str(LARGEST_CRF), "svtav1-params": f"crf={quality}"}
    if codec == "libx265":
        options["x265-params"] = "log-level=error"
    return options
