"""FitSettings: everything that decides what a bundle becomes. Importing it does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_efficient.methods import VIDEO, check_settings
from hf_efficient.reading import is_number, shown

if TYPE_CHECKING:
    from hf_efficient.video.networks.backbones import NetworkSpec

SCALES = (2, 3, 4)
BACKBONES = ("wdsr", "espcn", "edsr", "srcnn", "vdsr")
METHODS = VIDEO.names
EDGES = ("count", "error")
WEIGHT_DTYPES = ("float32", "float16", "int8")
LR_CODECS = ("libx264", "libx265", "libsvtav1")
STARTS = ("general", "previous", "none")
ALPHA, INTERLACED = ("refuse", "drop"), ("refuse", "deinterlace", "keep")
AUTO, BICUBIC = "auto", "bicubic"
_X26 = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
PRESETS = {"libx264": _X26, "libx265": _X26, "libsvtav1": tuple(map(str, range(-1, 14)))}
WORST_QUALITY = {"libx264": 51, "libx265": 51, "libsvtav1": 63}


def _help(text: str, choices: tuple[object, ...] | None = None) -> dict[str, object]:
    return {"help": text} if choices is None else {"help": text, "choices": choices}


@dataclass
class FitSettings:
    """How a video becomes a bundle. The defaults fit a CPU; the paper's are in docs/stdo.md.

    Args:
        scale: 2, 3 or 4.
        method: "jstdo": one network on the data-aware sample; "stdo": a network for each chunk of like difficulty;
            "single": one network on all patches; "time": a network for each stretch of time (NAS).
        num_chunks: k: networks of "stdo" and "time", levels of sampling of "jstdo"; "auto": by the share of error
            that the chunks carry and the steps there are for each (4 for "jstdo", which needs no choice).
        edges: chunks of equal "count" of patches, as published, or of equal "error".
        scorer: what tells how hard a patch is: "bicubic" enlargement, or a network: the folder of a bundle or model of
            one network for this scale, fitted to any video.
        warm_start: what each of several networks starts from: one "general" network that takes half of the steps, the
            network of the "previous" (harder, or earlier) chunk, or "none".
        backbone: "wdsr", "espcn", "edsr", "srcnn" or "vdsr".
        num_features: width of the networks; a list gives each chunk its own, the hardest first.
        num_blocks: depth, likewise.
        expansion: WDSR's width inside a block over its width outside.
        weight_dtype: "float32", "float16" or "int8" on disk.
        steps: training steps of all networks together, the common start included.
        batch_size: patches a step.
        learning_rate: of the first step.
        halo: low-resolution pixels of true context around training patches; 0 trains them alone, as published. 6 is all
            that the default network sees.
        max_patches: most patches kept on disk for one network: a random part of its chunk where it has more.
        lr_codec: of the low-resolution stream: "libx264", "libx265" or "libsvtav1".
        lr_quality: its constant quality (crf, smaller is better); 0 is lossless RGB (libx264 only).
        lr_preset: its speed; "" is a slow one.
        alpha: "refuse" a source with an alpha channel, or "drop" it.
        interlaced: "refuse" an interlaced source, "deinterlace" it, or "keep" its frames as they are.
        seed: of initial weights, sampling and batches.
        checkpoint_every: steps between saved states.

    Raises:
        ValueError: a value is out of range, or is set where its method does not read it; the message names it.
    """

    scale: int = field(default=2, metadata=_help("How much smaller the stream is.", SCALES))
    method: str = field(default="jstdo", metadata=_help("What is trained on what.", METHODS))
    num_chunks: int | str = field(default=AUTO, metadata=_help("Chunks k, or auto."))
    edges: str = field(default="count", metadata=_help("Chunks of equal count of patches or of equal error.", EDGES))
    scorer: str = field(default=BICUBIC, metadata=_help("bicubic, or the folder of a general model that scores."))
    warm_start: str = field(default="general", metadata=_help("Start of several networks.", STARTS))
    backbone: str = field(default="wdsr", metadata=_help("Kind of network.", BACKBONES))
    num_features: int | list[int] = field(default=16, metadata=_help("Width of the networks."))
    num_blocks: int | list[int] = field(default=2, metadata=_help("Depth of the networks."))
    expansion: int = field(default=4, metadata=_help("Width inside a block of WDSR over its width outside."))
    weight_dtype: str = field(default="float16", metadata=_help("Weights on disk.", WEIGHT_DTYPES))
    steps: int = field(default=1500, metadata=_help("Training steps of all networks together."))
    batch_size: int = field(default=16, metadata=_help("Patches a step."))
    learning_rate: float = field(default=1e-3, metadata=_help("Learning rate of the first step."))
    halo: int = field(default=6, metadata=_help("Context around training patches, low-resolution pixels."))
    max_patches: int = field(default=4096, metadata=_help("Most training patches kept for one network."))
    lr_codec: str = field(default="libx264", metadata=_help("Of the low-resolution stream.", LR_CODECS))
    lr_quality: int = field(default=10, metadata=_help("Its crf; 0 is lossless RGB."))
    lr_preset: str = field(default="", metadata=_help("Its preset; a slow one by default."))
    alpha: str = field(default="refuse", metadata=_help("What to do with an alpha channel.", ALPHA))
    interlaced: str = field(default="refuse", metadata=_help("What to do with interlaced video.", INTERLACED))
    seed: int = field(default=0, metadata=_help("Seed of weights, sampling and batches."))
    checkpoint_every: int = field(default=100, metadata=_help("Steps between saved states."))

    def __post_init__(self) -> None:
        for name, choices in (("method", METHODS), ("edges", EDGES), ("weight_dtype", WEIGHT_DTYPES),
                              ("lr_codec", LR_CODECS), ("warm_start", STARTS), ("alpha", ALPHA),
                              ("interlaced", INTERLACED)):  # fmt: skip
            _check_choice(name, getattr(self, name), choices)
        bounds = {"steps": (1, None), "batch_size": (1, 4096), "halo": (0, 60), "max_patches": (1, None),
                  "lr_quality": (0, 63), "seed": (0, 2**31), "checkpoint_every": (1, None)}  # fmt: skip
        for name, (least, most) in bounds.items():
            _check_whole(name, getattr(self, name), least, most)
        if not isinstance(self.lr_preset, str):
            raise ValueError(f"lr_preset={shown(self.lr_preset)} is out of range; expected text.")
        if isinstance(self.num_chunks, str) and self.num_chunks.isdecimal():
            self.num_chunks = int(self.num_chunks)
        if self.num_chunks != AUTO:
            _check_whole("num_chunks", self.num_chunks, 1, 256)
        if not is_number(self.learning_rate) or not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate={shown(self.learning_rate)} is out of range; expected a number in (0, 1).")
        check_encoder(self.lr_codec, self.lr_quality, self.lr_preset, ("lr_quality", "lr_preset"))
        if self.lr_quality == 0 and self.lr_codec != "libx264":
            raise ValueError(f"lr_quality=0 (lossless RGB) needs lr_codec='libx264', not {self.lr_codec!r}.")
        lists = [v for v in (self.num_features, self.num_blocks) if isinstance(v, (list, tuple))]
        if lists and (self.method not in ("stdo", "time") or any(len(v) != self.num_chunks for v in lists)):
            raise ValueError(
                f"num_features={shown(self.num_features)}, num_blocks={shown(self.num_blocks)}: a list needs "
                "method='stdo' or 'time' and num_chunks equal to its length."
            )
        for m in range(len(lists[0]) if lists else 1):
            self.network(m)
        check_settings(self, VIDEO)

    def network(self, m: int) -> NetworkSpec:
        """What builds network m."""
        from hf_efficient.video.networks.backbones import NetworkSpec  # here, since it imports torch

        def at(value: Any) -> Any:
            return value[m] if isinstance(value, (list, tuple)) else value

        return NetworkSpec(self.backbone, self.scale, at(self.num_features), at(self.num_blocks), self.expansion)

    @property
    def same_networks(self) -> bool:
        """Whether all chunks have networks of one size, so that they can start from a common one."""
        return not isinstance(self.num_features, (list, tuple)) and not isinstance(self.num_blocks, (list, tuple))


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={shown(value)} is not known; expected one of {', '.join(map(repr, choices))}.")


def _check_whole(name: str, value: object, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        upper = "on" if most is None else f"to {most}"
        raise ValueError(f"{name}={shown(value)} is out of range; expected a whole number from {least} {upper}.")


def check_encoder(
    codec: str, quality: int | None, preset: str | None, names: tuple[str, str] = ("quality", "preset")
) -> None:
    """Raise ValueError for a quality or a preset that the codec does not have, before it says so in its own words.

    Args:
        codec: FFmpeg's encoder; of one that is not in `PRESETS` nothing is known.
        quality: its crf, or None.
        preset: its preset; None and "" leave it to us.
        names: of the two settings.
    """
    if codec not in PRESETS:
        return
    if quality is not None:
        _check_whole(names[0], quality, 0, WORST_QUALITY[codec])
    if preset and preset not in PRESETS[codec]:
        known = ", ".join(PRESETS[codec])
        raise ValueError(f"{names[1]}={preset!r} is not known to {codec}; expected one of {known}.")
