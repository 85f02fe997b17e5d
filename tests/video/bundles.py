"""Small bundles for tests, made once a session."""

from pathlib import Path
from typing import Any

from hf_efficient.video.bundle import Bundle
from hf_efficient.video.fit import fit_video
from tests.video.clips import make_clip, pictures

QUICK: dict[str, Any] = {
    "num_features": 4, "num_blocks": 1, "steps": 8, "batch_size": 4, "checkpoint_every": 2, "max_patches": 32,
    "progress_bar": False, "device": "cpu", "lr_preset": "ultrafast",
}  # fmt: skip


def source_clip(folder: Path, frames: int = 12, size: tuple[int, int] = (96, 80), **options: Any) -> Path:
    """A made video with sound."""
    return make_clip(folder / "source.mp4", pictures(frames, *size), **{"audio": "aac", **options})


def quick_bundle(folder: Path, **settings: Any) -> Bundle:
    """A bundle of `source_clip`, barely trained."""
    folder.mkdir(exist_ok=True)
    return fit_video(source_clip(folder), folder / "bundle", **{**QUICK, **settings})
