"""Quality of a bundle: PSNR (whole frames, the paper's), SSIM, flicker and VMAF, against plain enlargement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.video.files.reader import StrPath, VideoInfo, read_frames
from hf_efficient.video.growing_table import GrowingTable
from hf_efficient.video.networks.backbones.luma import LUMA
from hf_efficient.video.networks.general import anchor
from hf_efficient.video.networks.inference import enlarge_whole
from hf_efficient.video.patches import pad_to_grid, patch_errors, psnr, to_rgb8, to_tensor
from hf_efficient.video.play.player import Player

from .flicker import Flicker
from .vmaf import vmaf_of_frames

LUMA_WEIGHTS = np.array(LUMA, np.float32)


@dataclass
class Quality:
    """Errors of the frames of one video against its source.

    Args:
        frame_errors: mean squared error of every whole frame (RGB, 8 bits, white is 1).
        luma_errors: the same of luma (BT.601).
        similarities: SSIM of every frame (luma).
        flicker: of what stands still in the source (luma).
        patch_errors: (I·J) errors of every frame's patches without s + 4 pixels on all sides: the paper's metric.
    """

    frame_errors: list[float] = field(default_factory=list)
    luma_errors: list[float] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    patch_errors: GrowingTable = field(default_factory=lambda: GrowingTable(np.float32))
    flicker: Flicker = field(default_factory=Flicker)

    def summary(self) -> dict[str, float]:
        """PSNR of the pooled error, mean PSNR of frames, the paper's PSNR, SSIM, and flicker."""
        return {
            "psnr": psnr(float(np.mean(self.frame_errors))),
            "psnr_luma": psnr(float(np.mean(self.luma_errors))),
            "psnr_frame_mean": float(np.mean([psnr(error) for error in self.frame_errors])),
            "psnr_paper": psnr(float(self.patch_errors.array().mean(dtype=np.float64))),
            "ssim": float(np.mean(self.similarities)),
            "flicker": self.flicker.value,
        }

    def add(self, rgb: np.ndarray, truth: np.ndarray, player: Player) -> None:
        """Add one frame; both are (H, W, 3) uint8."""
        g = player.geometry
        self.frame_errors.append(float(np.square((rgb.astype(np.float32) - truth) / 255).mean(dtype=np.float64)))
        self.similarities.append(ssim(rgb, truth))
        self.luma_errors.append(float(np.square((rgb.astype(np.float32) - truth) / 255 @ LUMA_WEIGHTS).mean()))
        self.flicker.add(rgb @ LUMA_WEIGHTS, truth @ LUMA_WEIGHTS)
        played, true = (pad_to_grid(to_tensor(x), g) for x in (rgb, truth))
        self.patch_errors.add(patch_errors(played, true, g, border=math.ceil(g.scale) + 4))


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Structural similarity of the luma of two (H, W, 3) uint8 images (Wang et al., 2004).

    The window is Gaussian, 11 x 11, of standard deviation 1.5, as published; the mean is over all positions inside.
    """
    weights = torch.tensor(LUMA, dtype=torch.float64)
    a, b = (torch.from_numpy(p.astype(np.float64)) @ weights for p in (x, y))
    side = min(11, *a.shape)
    line = torch.exp(-((torch.arange(side, dtype=torch.float64) - (side - 1) / 2) ** 2) / (2 * 1.5**2))
    line /= line.sum()

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z[None, None], line[None, None, :, None]), line[None, None, None, :])[0, 0]

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(value.mean())


Enlarge = Callable[[np.ndarray], np.ndarray]
"""Makes of a decoded frame (h, w, 3) one of the source's size (H, W, 3), both uint8."""


def by_filter(player: Player, filter_name: str) -> Enlarge:
    """Enlargement by Pillow's "bicubic" or "lanczos"."""
    g, source = player.geometry, player.bundle.source
    resampling = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}[filter_name]

    def enlarge(rgb: np.ndarray) -> np.ndarray:
        large = Image.fromarray(rgb).resize((g.large(g.lr_width), g.large(g.lr_height)), resampling)
        return np.array(large)[: source.height, : source.width]

    return enlarge


def by_general(player: Player) -> Enlarge:
    """Enlargement by the general network."""
    general, source = anchor(player.geometry.scale), player.bundle.source
    net = general.load().to(player.device)

    @torch.no_grad()
    def enlarge(rgb: np.ndarray) -> np.ndarray:
        large = enlarge_whole(net, general.spec, to_tensor(rgb).to(player.device)).cpu()
        return to_rgb8(large[..., : source.height, : source.width])

    return enlarge


def enlarged_frames(low_resolution: Path, player: Player, filter_name: str, every: int = 1) -> Iterator[np.ndarray]:
    """Every `every`-th frame of the low-resolution stream, enlarged by Pillow's "bicubic" or "lanczos", uint8."""
    enlarge = by_filter(player, filter_name)
    return (enlarge(frame.rgb) for frame in islice(read_frames(low_resolution), 0, None, every))


def general_frames(low_resolution: Path, player: Player, every: int = 1) -> Iterator[np.ndarray]:
    """Every `every`-th frame of the low-resolution stream, enlarged by the general network, uint8."""
    enlarge = by_general(player)
    return (enlarge(frame.rgb) for frame in islice(read_frames(low_resolution), 0, None, every))


def evaluate(
    bundle: StrPath,
    source: StrPath,
    *,
    every: int = 1,
    vmaf: bool = False,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Compare what a bundle plays with its source.

    Args:
        bundle: the folder.
        source: the video it was made from.
        every: take every `every`-th frame.
        vmaf: also measure VMAF and VMAF-NEG of the whole videos, by the FFmpeg of the imageio-ffmpeg package.
        device: where the networks run.
        progress: called with 1 for each frame that is compared.

    Returns:
        "stdo", "general" (network on the same stream), "bicubic", "lanczos": psnr, psnr_luma, psnr_frame_mean,
        psnr_paper (dB), ssim, flicker (levels of 255, between the frames taken), and vmaf and vmaf_neg if asked for;
        "chunks": a row for each network; "bytes"; "frame_psnr": curve; "patch_gain": (I, J) dB
        over bicubic for each patch; "still": share of the pixels whose flicker is measured.

    Raises:
        BundleError: the bundle was made from another source, or is damaged.
    """
    player = Player(bundle, device)
    info = player.bundle.probe_source(source)
    others = {"general": by_general(player), **{name: by_filter(player, name) for name in ("bicubic", "lanczos")}}
    quality = {name: Quality() for name in ("stdo", *others)}
    labels = GrowingTable(np.uint8)
    truths = islice(read_frames(source, info), 0, None, every)
    for truth, small in zip(truths, player.small_frames(every), strict=False):  # decoded once for all of them
        quality["stdo"].add(player.enlarge(small.rgb, small.labels), truth.rgb, player)
        for name, enlarge in others.items():
            quality[name].add(enlarge(small.rgb), truth.rgb, player)
        labels.add(small.labels)
        if progress is not None:
            progress(1)
    result: dict[str, Any] = {name: q.summary() for name, q in quality.items()}
    errors = {name: quality[name].patch_errors.array() for name in ("stdo", "bicubic")}
    result["chunks"] = _chunks(errors, labels.array(), player.config.num_experts)
    result["bytes"] = player.bundle.sizes()
    result["frames"] = len(labels)
    result["still"] = quality["stdo"].flicker.share
    result["frame_psnr"] = {name: [psnr(error) for error in q.frame_errors] for name, q in quality.items()}
    gain = errors["bicubic"].mean(0) / np.maximum(errors["stdo"].mean(0), 1e-12)
    result["patch_gain"] = (10 * np.log10(np.maximum(gain, 1e-12))).reshape(player.geometry.rows, -1).tolist()
    if vmaf:
        for name, frames in _all_frames(player).items():
            result[name] |= vmaf_of_frames(frames, player.bundle.source, source)
    return result


def _all_frames(player: Player) -> dict[str, Iterator[np.ndarray]]:
    """All frames by every way to play a bundle."""
    low = player.bundle.low_resolution
    return {
        "stdo": (frame.rgb for frame in player.frames()),
        "general": general_frames(low, player),
        **{name: enlarged_frames(low, player, name) for name in ("bicubic", "lanczos")},
    }


def quality_of_file(path: StrPath, source: StrPath, info: VideoInfo) -> dict[str, float]:
    """SSIM and flicker of a video file, such as a codec makes of the whole source.

    Args:
        path: the file.
        source: the video that it should be.
        info: what `probe` said of the source.
    """
    similarities, flicker = [], Flicker()
    for frame, truth in zip(read_frames(path), read_frames(source, info), strict=True):
        similarities.append(ssim(frame.rgb, truth.rgb))
        flicker.add(frame.rgb @ LUMA_WEIGHTS, truth.rgb @ LUMA_WEIGHTS)
    return {"ssim": float(np.mean(similarities)), "flicker": flicker.value}


def _chunks(errors: dict[str, np.ndarray], labels: np.ndarray, k: int) -> list[dict[str, Any]]:
    """A row for each network: its patches, and the PSNR on them by the paper's metric."""
    rows = []
    for m in range(k):
        mine = labels == m
        row: dict[str, Any] = {"expert": m, "patches": int(mine.sum())}
        for name, table in errors.items():
            own = table[mine]
            row[f"psnr_paper_{name}"] = psnr(float(own.mean(dtype=np.float64))) if own.size else math.nan
        rows.append(row)
    return rows
