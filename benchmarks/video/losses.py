"""What a delta gains by another loss: `python -m benchmarks.video.losses`.

One AV1 stream at half the size for each clip, and on it deltas trained for the squared error of luma, for its absolute
error, and for structure, 0.84 (1 - SSIM) + 0.16 |error| (after Zhao et al., 2017, at one scale), all at the price of a
bit of a fit: four times the loss of bicubic enlargement for each bit of the stream. Each plays the whole clip. PSNR and
SSIM of luma, flicker, VMAF and VMAF-NEG; bicubic and the general network on the same stream stand above. Resumable.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.delta_bench import PRICE, Bench, Bicubic
from benchmarks.video.rate import CLIPS
from hf_efficient.video.encode.delta_fit import EXPERT
from hf_efficient.video.encode.losses import LOSSES, loss_of_bicubic
from hf_efficient.video.encode.overfit import overfit
from hf_efficient.video.files.reader import read_frames
from hf_efficient.video.measure.evaluation import LUMA_WEIGHTS, ssim
from hf_efficient.video.measure.flicker import Flicker
from hf_efficient.video.measure.vmaf import vmaf_of_frames
from hf_efficient.video.networks.delta import pack_delta, unpack_delta
from hf_efficient.video.networks.inference import enlarge_whole
from hf_efficient.video.patches import psnr, to_rgb8

NAMES = {"mse": "squared error", "l1": "absolute error", "perceptual": "structure"}
TRAINED = {name: LOSSES[loss] for loss, name in NAMES.items()}


def trained(bench: Bench, name: str, steps: int) -> tuple[int, nn.Module]:
    """Bytes and network of a delta by a loss."""
    delta, recipe = bench.fit.deltas()[EXPERT]
    cost = PRICE * loss_of_bicubic(TRAINED[name], bench.store, 2, recipe.trim) / (8 * bench.stream)
    overfit(
        delta, bench.store, replace(recipe, steps=steps), bench.fit.work / f"{name}.safetensors",
        loss=TRAINED[name], penalty=lambda net: cost * net.bits(),  # type: ignore[operator]
    )  # fmt: skip
    packed, net = pack_delta([bench.fit.general.load()], [delta.levels()], delta.fineness), bench.fit.general.load()
    unpack_delta(packed, [net])
    return len(packed), net


@torch.no_grad()
def played(bench: Bench, net: nn.Module) -> Iterator[np.ndarray]:
    """All frames, (H, W, 3) uint8."""
    info = bench.fit.info
    for pair in bench.fit.pairs():
        yield to_rgb8(enlarge_whole(net, bench.fit.general.spec, pair.lr)[..., : info.height, : info.width])


def quality(bench: Bench, net: nn.Module) -> dict[str, float]:
    """Of the whole clip."""
    errors, similar, flicker = [], [], Flicker()
    for rgb, truth in zip(played(bench, net), read_frames(bench.fit.source, bench.fit.info), strict=True):
        a, b = rgb @ LUMA_WEIGHTS, truth.rgb @ LUMA_WEIGHTS
        errors.append(float(np.square((a - b) / 255).mean()))
        similar.append(ssim(rgb, truth.rgb))
        flicker.add(a, b)
    found = {"psnr_luma": psnr(float(np.mean(errors))), "ssim": float(np.mean(similar)), "flicker": flicker.value}
    return found | vmaf_of_frames(played(bench, net), bench.fit.info, bench.fit.source)


def measure(clip: str, seed: int, results: Rows, arguments: argparse.Namespace, bar: tqdm) -> None:
    """All rows of a clip and seed that are not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        bench: Bench | None = None
        for name in ("bicubic", "general", *TRAINED):
            key = f"{clip} / {name} / {seed if name in TRAINED else 0}"
            if key not in results.rows:
                bench = bench or Bench(clip, Path(folder), seed, arguments)
                plain = {"bicubic": Bicubic, "general": bench.fit.general.load}
                size, net = trained(bench, name, arguments.steps) if name in TRAINED else (0, plain[name]())
                results.add(key, {"bytes": size, **quality(bench, net)})
            bar.update()


def write(results: Rows, output: Path) -> None:
    """The table."""
    rows = [
        [*key.split(" / "), f"{r['bytes']:,}", f"{r['psnr_luma']:.2f}", f"{r['ssim']:.4f}", f"{r['vmaf']:.2f}",
         f"{r['vmaf_neg']:.2f}", f"{r['flicker']:.3f}"]
        for key, r in results.rows.items()
    ]  # fmt: skip
    head = ["clip", "trained for", "seed", "bytes", "luma, dB", "SSIM", "VMAF", "VMAF-NEG", "flicker"]
    write_table(output / "table.md", markdown(head, rows))


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "losses", threads=True)
    made.add_argument("--clips", nargs="+", default=["bikes.mp4"], choices=list(CLIPS))
    made.add_argument("--quality", type=int, default=50, help="crf of the stream")
    made.add_argument("--steps", type=int, default=600)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--seeds", nargs="+", type=int, default=[0])
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    results = Rows(arguments.output / "results.json", arguments, ("quality", "steps", "batch_size"))
    record_run(arguments.output)
    with tqdm(total=(2 + len(TRAINED)) * len(arguments.clips) * len(arguments.seeds), unit="row") as bar:
        for clip in arguments.clips:
            for seed in arguments.seeds:
                measure(clip, seed, results, arguments, bar)
                write(results, arguments.output)


if __name__ == "__main__":
    main()
