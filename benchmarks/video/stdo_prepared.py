"""What all rows of one clip and scale share: low-resolution stream, scores, training patches, frames to measure.

Cutting patches anew for each row would take longer than training on them.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_efficient.video.encode.fit import Fit
from hf_efficient.video.encode.patch_store import write_stores
from hf_efficient.video.files.manifest import MANIFEST_NAME
from hf_efficient.video.files.reader import read_frames
from hf_efficient.video.measure.evaluation import Quality, enlarged_frames
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import AUTO, FitSettings

CPU = torch.device("cpu")


class Prepared:
    """One clip at one scale.

    Args:
        clip: the file.
        settings: scale, seed and patches; the rows may differ from it in method, size and steps.
        kinds: name of each method -> its Fit and the fields that make it.
        folder: for the stream and the patches.
        every: measure on every N-th frame.
    """

    def __init__(
        self,
        clip: Path,
        settings: FitSettings,
        kinds: dict[str, tuple[type[Fit], dict[str, Any]]],
        folder: Path,
        every: int,
    ) -> None:
        self.clip, self.folder = clip, folder
        neutral = replace(settings, method="single", num_chunks=AUTO, edges="count")
        self.base = Fit(self.clip, folder / "base", neutral, False, CPU)
        self.base.prepare(overwrite=True)
        self.base.make_low_resolution()
        self.base.score()
        self._cut(kinds)
        self.truth = [f.rgb for f in islice(read_frames(self.clip), 0, None, every)]
        self.low = [f.rgb for f in islice(read_frames(self.base.low_resolution), 0, None, every)]
        self.every = every
        self.bicubic: float | None = None

    def _cut(self, kinds: dict[str, tuple[type[Fit], dict[str, Any]]]) -> None:
        """All patches of all methods in one pass."""
        wanted, folders = [], []
        for name, (kind, fields) in kinds.items():
            plan = kind.plan_class(replace(self.base.settings, **fields), self.base.plan.errors)
            for network, numbers in plan.chosen_patches().items():
                wanted.append(numbers)
                folders.append(self.folder / name / network)
                folders[-1].parent.mkdir(exist_ok=True)
        write_stores(self.base.pairs(), self.base.geometry, self.base.settings.halo, wanted, folders)

    def run(self, name: str, kind: type[Fit], settings: FitSettings) -> dict[str, float]:
        """Fit a bundle and measure it, its bytes too."""
        fit = kind(self.clip, self.folder / "row", settings, False, CPU)
        fit.prepare(overwrite=True)
        os.link(self.base.low_resolution, fit.low_resolution)
        os.link(self.base.work / "errors.npy", fit.work / "errors.npy")
        for network in (self.folder / name).iterdir():
            shutil.copytree(network, fit.work / network.name, copy_function=os.link)
        fit.run(overwrite=True)
        player = Player(self.folder / "row")
        sizes = player.bundle.sizes()
        stream = sizes.pop(player.bundle.low_resolution.name)
        manifest = (player.bundle.path / MANIFEST_NAME).stat().st_size  # a player needs it, so it counts
        result = {**self.measure(player), "stream": stream, "networks": sum(sizes.values()) + manifest}
        shutil.rmtree(self.folder / "row")
        return result

    def measure(self, player: Player) -> dict[str, float]:
        """PSNR of whole frames, the paper's metric and SSIM of a bundle; PSNR of bicubic enlargement."""
        quality = Quality()
        labels = islice(player.labels(), 0, None, self.every)
        for truth, low, mine in zip(self.truth, self.low, labels, strict=False):
            quality.add(player.enlarge(low, mine), truth, player)
        if self.bicubic is None:
            large = islice(enlarged_frames(self.base.low_resolution, player, "bicubic"), 0, None, self.every)
            self.bicubic = pooled_psnr(zip(large, self.truth, strict=True))
        kept = {k: v for k, v in quality.summary().items() if k != "psnr_frame_mean"}
        return {**kept, "bicubic": self.bicubic}


def pooled_psnr(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """dB of the mean squared error over all frames."""
    errors = [np.square((a.astype(np.float32) - b) / 255).mean(dtype=np.float64) for a, b in pairs]
    return float(-10 * np.log10(np.mean(errors)))
