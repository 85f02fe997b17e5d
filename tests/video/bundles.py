"""Small bundles for tests, and what tests of fitting share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_efficient.video.encode.fit import Fit, fit_video
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.settings import FitSettings
from tests.video.clips import make_clip, moving_frames

QUICK: dict[str, Any] = {
    "method": "jstdo",
    "num_features": 4, "num_blocks": 1, "steps": 8, "batch_size": 4, "checkpoint_every": 2, "max_patches": 32,
    "progress_bar": False, "device": "cpu", "lr_preset": "ultrafast",
}  # fmt: skip


def source_clip(folder: Path, frames: int = 12, size: tuple[int, int] = (96, 80), **options: Any) -> Path:
    """A made video with sound."""
    return make_clip(folder / "source.mp4", moving_frames(frames, *size), **{"audio": "aac", **options})


def three_scenes(path: Path) -> Path:
    """Eight frames each of dark, bright and dark moving pictures."""
    parts = [moving_frames(8, 96, 80, seed) // 2 + offset for seed, offset in ((0, 0), (1, 120), (2, 0))]
    return make_clip(path, np.concatenate(parts).astype(np.uint8), audio="aac")


def quick_bundle(folder: Path, **settings: Any) -> Bundle:
    """A bundle of `source_clip`, barely trained."""
    folder.mkdir(exist_ok=True)
    return fit_video(source_clip(folder), folder / "bundle", **{**QUICK, **settings})


def on_whole_frames(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a network as published makes of frames that their border continues, so far that its zeros do not count."""
    far = 40
    sides = [(0, 0), (0, 0), (far, far), (far, far)]
    with torch.no_grad():
        large: torch.Tensor = net(torch.from_numpy(np.pad(x.numpy(), sides, mode="edge")))
    cut = far * large.shape[-1] // (x.shape[-1] + 2 * far)
    return large[..., cut:-cut, cut:-cut]


def files(folder: Path) -> dict[str, bytes]:
    """Content of every file, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def started(tmp_path: Path, **settings: Any) -> Fit:
    """The stages of a fit, before training."""
    tmp_path.mkdir(exist_ok=True)
    known = {k: v for k, v in {**QUICK, **settings}.items() if k in FitSettings.__dataclass_fields__}
    fit = Fit(source_clip(tmp_path), tmp_path / "bundle", FitSettings(**known), False, torch.device("cpu"))
    fit.prepare(overwrite=False)
    fit.make_low_resolution()
    fit.score()
    return fit
