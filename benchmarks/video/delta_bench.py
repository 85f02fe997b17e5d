"""A clip on which `delta.py` measures what is sent of a network: one stream, its patches, its frames."""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.video.delta_schemes import Part, Sent, stretch_stores
from benchmarks.video.fetch_clips import fetch
from benchmarks.video.rate import CLIPS
from benchmarks.video.stdo_baselines import EMT_SHARE, hardest
from benchmarks.video.stdo_rate import silent
from hf_efficient.video.encode.candidates import SAMPLES
from hf_efficient.video.encode.delta_fit import EXPERT, SCALES, DeltaFit
from hf_efficient.video.encode.overfit import Patches, Recipe, overfit
from hf_efficient.video.networks.backbones.luma import bicubic, luma, luma_error
from hf_efficient.video.networks.delta import pack_delta, unpack_delta
from hf_efficient.video.networks.inference import enlarge_whole
from hf_efficient.video.networks.weights import add_weight_norm, as_stored, fold_weight_norm, stored_bytes
from hf_efficient.video.patches import psnr, round8
from hf_efficient.video.settings import FitSettings

PRICE = 4  # times the error of bicubic for each bit of the stream: what a fit takes
RATES = {"scratch": 2e-3, "general": 1e-3}


class Bicubic(nn.Module):
    """Corrects nothing."""

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        return bicubic(x, 2, trim)


class Bench:
    """A clip whose stream, scores and patches are made.

    Args:
        clip: name of `CLIPS`.
        folder: for its files.
        seed: of patches and batches.
        arguments: the options.
    """

    def __init__(self, clip: str, folder: Path, seed: int, arguments: argparse.Namespace) -> None:
        settings = FitSettings(
            method="delta", scale=2, num_features=8, lr_codec="libsvtav1", lr_quality=arguments.quality,
            batch_size=arguments.batch_size, max_patches=2048, seed=seed,
        )  # fmt: skip
        source = silent(fetch(clip), folder, CLIPS[clip])
        self.fit = DeltaFit(source, folder / "bundle", settings, False, torch.device("cpu"))
        self.fit.prepare(overwrite=True)
        self.fit.make_low_resolution()
        self.fit.score()
        self.fit.make_stores()
        self.plan = self.fit.plan
        every = max(1, len(self.plan.errors) // SAMPLES)
        pairs = enumerate(self.fit.pairs())
        self.frames = [(t, pair.lr, pair.hr) for t, pair in islice(pairs, 0, None, every)]
        self.stream = self.fit.low_resolution.stat().st_size
        self.store = self.fit.store(EXPERT)
        self.steps, self.folder = 0, folder

    def run(
        self, kind: str, train: "Callable[[Bench], Sent | dict[str, Sent]]", steps: int
    ) -> dict[str, dict[str, float]]:
        """Train at a number of steps; name of each row -> bytes, dB, and CPU seconds of the training."""
        self.steps, self.folder = steps, self.fit.work / f"{kind}-{steps}"
        self.folder.mkdir()
        began = time.process_time()
        sent = train(self)
        seconds = time.process_time() - began
        rows = sent if isinstance(sent, dict) else {kind: sent}
        return {
            name: {"bytes": size, "psnr": self.quality(nets), "seconds": round(seconds, 1)}
            for name, (size, nets) in rows.items()
        }

    @torch.no_grad()
    def quality(self, nets: Sequence[nn.Module]) -> float:
        """PSNR of luma, whole frames, errors pooled; with several networks each plays an equal stretch of time."""
        errors, total = [], len(self.plan.errors)
        for t, lr, hr in self.frames:
            height, width = self.fit.info.height, self.fit.info.width
            net = nets[t * len(nets) // total]
            played = round8(enlarge_whole(net, self.fit.general.spec, lr))[..., :height, :width] / 255
            errors.append(float((luma(played) - luma(hr[..., :height, :width])).square().mean()))
        return psnr(float(np.mean(errors)))

    def whole(self, start: str) -> dict[str, Sent]:
        """All weights, trained once, stored in 16 and in 8 bits."""
        recipe = replace(self.recipe(), learning_rate=RATES[start])
        torch.manual_seed(recipe.seed)
        spec = self.fit.general.spec
        net = self.fit.general.load() if start == "general" else spec.build()
        add_weight_norm(net.requires_grad_(True))
        overfit(net, self.store, recipe, self.folder / "whole.safetensors", loss=luma_error)
        plain = fold_weight_norm(net)
        return {
            f"all weights, {dtype}, from {start}": (
                stored_bytes(spec.build(), dtype), [as_stored(copy.deepcopy(plain), dtype)]
            )
            for dtype in ("float16", "int8")
        }  # fmt: skip

    def recipe(self, weights: bool = True) -> Recipe:
        """How a change is trained; without weights: scales and biases, which take a larger rate."""
        return replace(self.fit.deltas()[EXPERT if weights else SCALES][1], steps=self.steps)

    def penalty(self, price: float) -> Callable[[nn.Module], Tensor]:
        """Of the bits of a change."""
        cost = price * float(self.plan.errors.mean()) / (8 * self.stream)
        return lambda net: cost * net.bits()  # type: ignore[operator]

    def delta(self, price: float, weights: bool = True, stores: Sequence[Patches] = ()) -> Sent:
        """A delta trained at a price of a bit; without weights: scales and biases. Stores follow one another."""
        delta = self.fit.deltas()[EXPERT if weights else SCALES][0]
        stores, penalty = stores or [self.store], self.penalty(price)
        recipe = replace(self.recipe(weights), steps=self.steps // len(stores))
        for n, store in enumerate(stores):
            overfit(delta, store, recipe, self.folder / f"{n}.safetensors", loss=luma_error, penalty=penalty)
        packed, net = pack_delta([self.fit.general.load()], [delta.levels()], delta.fineness), self.fit.general.load()
        unpack_delta(packed, [net])
        return len(packed), [net]

    def hardest_last(self) -> Sent:
        """EMT's training: all patches, then the hardest fifth."""
        errors = self.plan.errors.ravel()[self.plan.chosen_patches()[EXPERT]]
        return self.delta(PRICE, stores=[self.store, Part(self.store, hardest(errors, EMT_SHARE))])

    def stores(self, count: int) -> list[Patches]:
        """The patches of each of `count` equal stretches of time."""
        frames = self.plan.chosen_patches()[EXPERT] // self.plan.errors.shape[1]
        return stretch_stores(self.store, frames, len(self.plan.errors), count)
