"""What a kilobyte of a network is worth: `python -m benchmarks.video.delta`.

One AV1 stream at half the size for each clip; on it, at equal steps and on the same patches: all weights of a network
on luma, trained from scratch and from the general one (16 bits and 8 bits), scales and biases alone, and deltas trained
for their rate at several prices of a bit. Bytes are those of the network alone. PSNR of luma on whole frames, errors
pooled over every N-th; the gain is over bicubic enlargement of the same stream. Resumable: each row is written when it
is done.
"""

import argparse
import copy
import tempfile
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.fetch_clips import fetch
from benchmarks.video.rate import CLIPS
from benchmarks.video.stdo_rate import silent
from hf_efficient.video.encode.candidates import SAMPLES
from hf_efficient.video.encode.delta_fit import EXPERT, SCALES, DeltaFit, rate_penalty
from hf_efficient.video.encode.overfit import overfit
from hf_efficient.video.networks.backbones.luma import bicubic, luma, luma_error
from hf_efficient.video.networks.delta import pack_delta, unpack_delta
from hf_efficient.video.networks.inference import enlarge_whole
from hf_efficient.video.networks.weights import add_weight_norm, as_stored, fold_weight_norm, stored_bytes
from hf_efficient.video.patches import psnr, round8
from hf_efficient.video.settings import FitSettings

PRICES = (1, 4, 16)  # times the error of bicubic for each bit of the stream; 4 is what a fit takes
WHOLE = ("scratch", "general")
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
        arguments: the options.
    """

    def __init__(self, clip: str, folder: Path, arguments: argparse.Namespace) -> None:
        settings = FitSettings(
            method="delta", scale=2, num_features=8, lr_codec="libsvtav1", lr_quality=arguments.quality,
            steps=arguments.steps, batch_size=arguments.batch_size, max_patches=2048, seed=arguments.seed,
        )  # fmt: skip
        source = silent(fetch(clip), folder, CLIPS[clip])
        self.fit = DeltaFit(source, folder / "bundle", settings, False, torch.device("cpu"))
        self.fit.prepare(overwrite=True)
        self.fit.make_low_resolution()
        self.fit.score()
        self.fit.make_stores()
        self.recipe = replace(self.fit.plan.recipes()[EXPERT], steps=arguments.steps)
        every = max(1, len(self.fit.plan.errors) // SAMPLES)
        self.frames = list(islice(self.fit.pairs(), 0, None, every))
        self.stream = self.fit.low_resolution.stat().st_size

    @torch.no_grad()
    def quality(self, net: nn.Module) -> float:
        """PSNR of luma, whole frames, errors pooled."""
        errors = []
        for lr, hr in self.frames:
            height, width = self.fit.info.height, self.fit.info.width
            played = round8(enlarge_whole(net, self.fit.general.spec, lr))[..., :height, :width] / 255
            errors.append(float((luma(played) - luma(hr[..., :height, :width])).square().mean()))
        return psnr(float(np.mean(errors)))

    def whole(self, start: str) -> dict[str, dict[str, float]]:
        """All weights, trained once, stored in 16 and in 8 bits."""
        torch.manual_seed(self.recipe.seed)
        net = self.fit.general.load() if start == "general" else self.fit.general.spec.build()
        add_weight_norm(net.requires_grad_(True))
        recipe = replace(self.recipe, learning_rate=RATES[start])
        overfit(net, self.fit.store(EXPERT), recipe, self.fit.work / f"whole-{start}.safetensors", loss=luma_error)
        rows, plain = {}, fold_weight_norm(net)
        for dtype in ("float16", "int8"):
            size = stored_bytes(self.fit.general.spec.build(), dtype)
            stored = as_stored(copy.deepcopy(plain), dtype)
            rows[f"all weights, {dtype}, from {start}"] = {"bytes": size, "psnr": self.quality(stored)}
        return rows

    def delta(self, price: float, weights: bool = True) -> dict[str, float]:
        """A delta trained at a price of a bit; without weights: scales and biases."""
        delta, recipe = self.fit.deltas()[EXPERT if weights else SCALES]
        cost = price * float(self.fit.plan.errors.mean()) / (8 * self.stream)
        name = self.fit.work / f"delta-{price}-{weights}.safetensors"
        recipe = replace(recipe, steps=self.recipe.steps)
        overfit(delta, self.fit.store(EXPERT), recipe, name, loss=luma_error, penalty=partial(rate_penalty, cost))
        packed, net = pack_delta([self.fit.general.load()], [delta.levels()], delta.fineness), self.fit.general.load()
        unpack_delta(packed, [net])
        return {"bytes": len(packed), "psnr": self.quality(net)}


def measure(clip: str, results: Rows, arguments: argparse.Namespace, bar: tqdm) -> None:
    """All rows of a clip that are not there yet."""

    def key(kind: str) -> str:
        return f"{clip} / {kind}"

    with tempfile.TemporaryDirectory() as name:
        bench: Bench | None = None
        if key("bicubic") not in results.rows:
            bench = Bench(clip, Path(name), arguments)
            results.add(key("bicubic"), {"bytes": 0, "psnr": bench.quality(Bicubic()), "stream": bench.stream})
            results.add(key("general"), {"bytes": 0, "psnr": bench.quality(bench.fit.general.load())})
        for start in WHOLE:
            if key(f"all weights, int8, from {start}") not in results.rows:
                bench = bench or Bench(clip, Path(name), arguments)
                for kind, row in bench.whole(start).items():
                    results.add(key(kind), row)
            bar.update()
        for kind, price, weights in [
            ("scales and biases", 4, False),
            *((f"delta, price {p}", p, True) for p in PRICES),
        ]:
            if key(kind) not in results.rows:
                bench = bench or Bench(clip, Path(name), arguments)
                results.add(key(kind), bench.delta(price, weights))
            bar.update()


def write(results: Rows, output: Path) -> None:
    """The table."""
    rows, bicubic_psnr, stream = [], {}, {}
    for key, row in results.rows.items():
        clip, kind = key.split(" / ")
        if kind == "bicubic":
            bicubic_psnr[clip], stream[clip] = row["psnr"], row["stream"]
        gain = row["psnr"] - bicubic_psnr[clip]
        above = row["psnr"] - results.rows[f"{clip} / general"]["psnr"] if f"{clip} / general" in results.rows else 0.0
        each = f"{above / row['bytes'] * 1024:+.3f}" if row["bytes"] else ""
        share = f"{row['bytes'] / stream[clip]:.1%}"
        rows.append(
            [clip, kind, f"{row['bytes']:,}", share, f"{row['psnr']:.2f}", f"{gain:+.2f}", f"{above:+.2f}", each]
        )
    head = ["clip", "sent of the network", "bytes", "of the stream", "luma, dB", "over bicubic", "over the general one",
            "dB a kilobyte over the general one"]  # fmt: skip
    write_table(output / "table.md", markdown(head, rows))


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "delta", threads=True)
    made.add_argument("--clips", nargs="+", default=["bikes.mp4", "sports2d.mp4"], choices=list(CLIPS))
    made.add_argument("--quality", type=int, default=50, help="crf of the stream")
    made.add_argument("--steps", type=int, default=600)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--seed", type=int, default=0)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    results = Rows(arguments.output / "results.json", arguments, ("quality", "steps", "batch_size", "seed"))
    record_run(arguments.output)
    with tqdm(total=6 * len(arguments.clips), unit="training") as bar:
        for clip in arguments.clips:
            measure(clip, results, arguments, bar)
            write(results, arguments.output)


if __name__ == "__main__":
    main()
