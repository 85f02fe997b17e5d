"""FitSettings: how a video becomes a bundle. Importing it does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_efficient.checks import check_choice, check_number, check_whole, plain_numbers
from hf_efficient.methods import BACKBONES, VIDEO, check_settings
from hf_efficient.plain_settings import PlainSettings
from hf_efficient.reading import shown
from hf_efficient.video.codecs import CODECS, check_encoder
from hf_efficient.video.networks.spec import GENERAL_SCALES, GENERAL_WIDTHS, WEIGHT_DTYPES, NetworkSpec

if TYPE_CHECKING:
    from hf_efficient.video.methods.assignment import Assignment

EDGES = ("count", "error")
LR_CODECS = tuple(CODECS)
STARTS = ("general", "previous", "none")
DOWNSCALINGS = ("bicubic", "back-projected")
LOSSES = ("mse", "l1", "perceptual")
ALPHA, INTERLACED = ("refuse", "drop"), ("refuse", "deinterlace", "keep")
AUTO, BICUBIC = "auto", "bicubic"
MOST_SCENES = 250  # with the networks of the whole video no more than a map can name


def _help(text: str, choices: tuple[object, ...] | None = None) -> dict[str, object]:
    return {"help": text} if choices is None else {"help": text, "choices": choices}


def _from_scratch() -> str:
    """The methods that any setting of a network is for, in words."""
    names = [repr(row.name) for row in VIDEO.methods if not row.implementation.starts_from_general]
    return f"a method that trains from scratch ({', '.join(names)})"


@dataclass
class FitSettings(PlainSettings):
    """How a video becomes a bundle. The defaults fit a CPU; the paper's are in docs/stdo.md.

    Args:
        scale: 2, 3 or 4; with "delta" also 1.5.
        method: "delta": the widest general network on luma of at most num_features, and what this video changes of it,
            of which what pays is sent. The others train networks from scratch and send them whole: the paper's "jstdo",
            one network on the data-aware sample, and "stdo", a network for each chunk of similar difficulty; "single":
            one network on all patches; "time": a network for each time segment (NAS).
        num_chunks: k: networks of "stdo" and "time", levels of sampling of "jstdo"; "auto": by the share of the
            error in each chunk and the steps for each network (4 for "jstdo").
        edges: "count": chunks of equally many patches, as published; "error": chunks of equal error.
        scorer: the general model that scores a patch's difficulty: "bicubic" enlargement, or the folder of a bundle or
            model with one network for this scale, fitted to any video.
        warm_start: where each of several networks starts: "general": from one network that takes half of the steps;
            "previous": from the network of the previous (harder, or earlier) chunk; "none": from its initial weights.
        backbone: of networks from scratch: "wdsr", "espcn", "edsr", "srcnn" or "vdsr".
        num_features: width of the networks; a list gives each chunk its own, the hardest first.
        num_blocks: depth, likewise.
        expansion: WDSR's width inside a block over its width outside.
        weight_dtype: "float32", "float16" or "int8" on disk.
        steps: training steps of all networks together, the common start included.
        batch_size: patches in a step.
        learning_rate: of the first step.
        halo: low-resolution pixels of true context around training patches; 0 trains them alone, as published. 6 is
            the receptive radius of the default network.
        model_bytes: "delta": the most bytes that are sent of a network and its config; 0: as many as pay.
        max_patches: the most patches kept on disk for one network; if its chunk has more, a random part of them.
        scenes: "delta": the most scenes that may have a delta of their own, cut where the stream changes most; 1: one
            delta for the whole video.
        loss: "delta": what it is trained for and chosen by: squared error of luma ("mse"), absolute error ("l1"), or
            structure ("perceptual": more VMAF and SSIM for less PSNR).
        downscaling: "bicubic", antialiased; or "back-projected": small frames whose bicubic enlargement is nearest to
            the source, which are sharper and cost more bits.
        lr_codec: of the low-resolution stream: "libx264", "libx265" or "libsvtav1".
        lr_quality: its constant quality (crf, smaller is better); 0 is lossless RGB (libx264 only).
        lr_preset: its preset; "" is a slow one.
        alpha: "refuse" a source with an alpha channel, or "drop" it.
        interlaced: "refuse" an interlaced source, "deinterlace" it, or "keep" its frames as they are.
        seed: of initial weights, sampling and batches.
        checkpoint_every: steps between saved states.

    Raises:
        ValueError: a value is out of range, or is set where its method does not read it; the message names it.
    """

    scale: float = field(default=2, metadata=_help("Scale of the enlargement; 1.5 with delta alone.", GENERAL_SCALES))
    method: str = field(default="delta", metadata=_help("Which network is trained on which patches.", VIDEO.names))
    num_chunks: int | str = field(default=AUTO, metadata=_help("Number of chunks, or auto."))
    edges: str = field(
        default="count", metadata=_help("Chunks of equally many patches (count) or of equal error.", EDGES)
    )
    scorer: str = field(
        default=BICUBIC, metadata=_help("Model that scores the patches: bicubic, or the folder of a general one.")
    )
    warm_start: str = field(default="general", metadata=_help("Where each of several networks starts.", STARTS))
    backbone: str = field(default="wdsr", metadata=_help("Architecture of the networks.", BACKBONES.names))
    num_features: int | list[int] = field(
        default=16, metadata=_help("Width of the networks; or one for each chunk, separated by commas.")
    )
    num_blocks: int | list[int] = field(default=2, metadata=_help("Depth of the networks; likewise."))
    expansion: int = field(default=4, metadata=_help("WDSR: width inside a block over width outside."))
    weight_dtype: str = field(default="float16", metadata=_help("Type of the weights on disk.", WEIGHT_DTYPES))
    steps: int = field(default=1500, metadata=_help("Training steps of all networks together."))
    batch_size: int = field(default=16, metadata=_help("Patches in a training step."))
    learning_rate: float = field(default=1e-3, metadata=_help("Learning rate of the first step."))
    halo: int = field(default=6, metadata=_help("Context around training patches, low-resolution pixels."))
    max_patches: int = field(default=4096, metadata=_help("The most training patches kept for one network."))
    model_bytes: int = field(default=0, metadata=_help("delta: the most bytes sent of the network; 0: what pays."))
    scenes: int = field(default=1, metadata=_help("delta: the most scenes with deltas of their own."))
    loss: str = field(default="mse", metadata=_help("delta: what it is trained for.", LOSSES))
    downscaling: str = field(default=BICUBIC, metadata=_help("How small frames are made.", DOWNSCALINGS))
    lr_codec: str = field(default="libx264", metadata=_help("Codec of the low-resolution stream.", LR_CODECS))
    lr_quality: int = field(default=10, metadata=_help("Constant quality (crf) of the stream; 0 is lossless RGB."))
    lr_preset: str = field(default="", metadata=_help("Preset of the stream's codec; a slow one if empty."))
    alpha: str = field(default="refuse", metadata=_help("What to do with a source that has an alpha channel.", ALPHA))
    interlaced: str = field(default="refuse", metadata=_help("What to do with an interlaced source.", INTERLACED))
    seed: int = field(default=0, metadata=_help("Seed of weights, sampling and batches."))
    checkpoint_every: int = field(default=100, metadata=_help("Steps between saved states."))

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name, choices in (("method", VIDEO.names), ("edges", EDGES), ("weight_dtype", WEIGHT_DTYPES),
                              ("lr_codec", LR_CODECS), ("warm_start", STARTS), ("alpha", ALPHA),
                              ("downscaling", DOWNSCALINGS), ("loss", LOSSES), ("interlaced", INTERLACED)):  # fmt: skip
            check_choice(name, getattr(self, name), choices)
        bounds = {"steps": (1, None), "batch_size": (1, 4096), "halo": (0, 60), "max_patches": (1, None),
                  "model_bytes": (0, None), "scenes": (1, MOST_SCENES), "lr_quality": (0, 70), "seed": (0, 2**31),
                  "checkpoint_every": (1, None)}  # fmt: skip
        for name, (least, most) in bounds.items():
            check_whole(name, getattr(self, name), least, most)
        if not isinstance(self.lr_preset, str):
            raise ValueError(f"lr_preset={shown(self.lr_preset)} is out of range; expected text.")
        if isinstance(self.num_chunks, str) and self.num_chunks.isdecimal():
            self.num_chunks = int(self.num_chunks)
        if self.num_chunks != AUTO:
            check_whole("num_chunks", self.num_chunks, 1, 256)
        check_number("learning_rate", self.learning_rate, 0, 1, "a number in (0, 1)", below=True, above=True)
        check_encoder(self.lr_codec, self.lr_quality, self.lr_preset, ("lr_quality", "lr_preset"))
        if self.lr_quality == 0 and self.lr_codec != "libx264":
            raise ValueError(f"lr_quality=0 (lossless RGB) needs lr_codec='libx264', not {self.lr_codec!r}.")
        lists = [v for v in (self.num_features, self.num_blocks) if isinstance(v, (list, tuple))]
        if lists and (not self.assignment.per_chunk or any(len(v) != self.num_chunks for v in lists)):
            per_chunk = " or ".join(repr(row.name) for row in VIDEO.methods if row.implementation.per_chunk)
            raise ValueError(
                f"num_features={shown(self.num_features)}, num_blocks={shown(self.num_blocks)}: a list needs "
                f"method={per_chunk} and num_chunks equal to its length."
            )
        if self.assignment.starts_from_general:
            self._check_general()
        elif self.scenes != 1:
            raise ValueError(f"scenes={self.scenes}: a delta for each scene needs method='delta', not {self.method!r}.")
        elif self.loss != LOSSES[0]:
            raise ValueError(
                f"loss={self.loss!r}: networks from scratch are trained for the absolute error, as published; a choice "
                f"needs method='delta', not {self.method!r}."
            )
        for m in range(len(lists[0]) if lists else 1):
            self.network(m)
        check_settings(self, VIDEO, BACKBONES)

    def _check_general(self) -> None:
        """Raise ValueError for a setting that the general network decides."""
        narrowest = min(GENERAL_WIDTHS.get(self.scale, (1,)))
        asked = NetworkSpec(self.backbone, 2, self.num_features, self.num_blocks, self.expansion)  # type: ignore
        if asked.num_features < narrowest:
            raise ValueError(
                f"num_features={asked.num_features}: method={self.method!r} starts from a general network, and none is "
                f"so narrow; expected at least {narrowest}, or {_from_scratch()}."
            )
        for name in ("backbone", "num_blocks", "expansion", "weight_dtype"):
            usual = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != usual:
                raise ValueError(
                    f"{name}={shown(getattr(self, name))}: method={self.method!r} starts from a general network, which "
                    f"decides it. Leave it out, or choose {_from_scratch()}."
                )

    def network(self, m: int) -> NetworkSpec:
        """What builds network m."""

        def at(value: Any) -> Any:
            return value[m] if isinstance(value, (list, tuple)) else value

        if self.assignment.starts_from_general:
            widths = GENERAL_WIDTHS.get(self.scale, (1,))  # of an unknown scale: NetworkSpec names it
            return NetworkSpec("luma_wdsr", self.scale, max(w for w in widths if w <= at(self.num_features)), 2)
        return NetworkSpec(self.backbone, self.scale, at(self.num_features), at(self.num_blocks), self.expansion)

    @property
    def context(self) -> int:
        """Low-resolution pixels around training patches: `halo`, and at least what a general network sees."""
        if not self.assignment.starts_from_general:
            return self.halo
        return max(self.halo + self.halo % 2, self.network(0).receptive_radius)

    @property
    def assignment(self) -> Assignment:
        """The method's rule."""
        assignment: Assignment = VIDEO.row(self.method).implementation()
        return assignment

    @property
    def same_networks(self) -> bool:
        """Whether all networks have one size, so that they can start from a common one."""
        return not isinstance(self.num_features, (list, tuple)) and not isinstance(self.num_blocks, (list, tuple))
