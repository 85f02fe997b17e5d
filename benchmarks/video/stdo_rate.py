"""Rate-distortion of bundles against codecs alone: `python -m benchmarks.video.stdo_rate`.

Every byte counts: low-resolution stream, networks, map. A bundle's curve has one point for each quality of its stream
and each width of its network; a codec's one for each constant quality, at a slow preset. Sound is left out of both.
PSNR is that of whole RGB frames, errors pooled. BD-rate is against x265. Resumable: each point is written when it is
done.

The second table asks what `--budget` must know: at the rate of each bundle, which scale and which share of networks
came out best, and whether bicubic enlargement of the stream, which needs no training, names the same scale.
"""

import argparse
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.fetch_clips import fetch
from benchmarks.video.stdo_prepared import Prepared
from hf_efficient.video.encode.fit import Fit
from hf_efficient.video.files.reader import probe
from hf_efficient.video.measure.rate_distortion import bd_rate, encode_at_quality
from hf_efficient.video.settings import FitSettings

CODECS = {"libx264": (22, 28, 34, 40, 46), "libx265": (22, 28, 34, 40, 46), "libsvtav1": (28, 38, 48, 58, 63)}
STREAMS = {"libx264": (20, 28, 36), "libx265": (24, 32, 40), "libsvtav1": (32, 44, 56)}
METHOD: dict[str, tuple[type[Fit], dict[str, Any]]] = {"JSTDO": (Fit, {"method": "jstdo"})}


def silent(clip: Path, folder: Path, frames: int) -> Path:
    """The first frames of a clip without its sound, not encoded anew; all of them for 0."""
    target = folder / f"silent{clip.suffix}"
    part = ["-frames:v", str(frames)] if frames else []
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", clip, "-map", "0:v:0", *part, "-c", "copy", target],
        check=True,
    )
    return target


def bundle_points(
    source: Path,
    scale: int,
    codec: str,
    quality: int,
    keys: dict[int, str],
    results: Rows,
    arguments: argparse.Namespace,
) -> None:
    """A bundle for each width, all over the same stream."""
    with tempfile.TemporaryDirectory() as folder:
        prepared: Prepared | None = None
        for width, key in keys.items():
            settings = FitSettings(
                method="jstdo", scale=scale, num_features=width, num_blocks=arguments.blocks, steps=arguments.steps,
                batch_size=arguments.batch_size, max_patches=arguments.max_patches,
                weight_dtype=arguments.weight_dtype, lr_codec=codec, lr_quality=quality,
            )  # fmt: skip
            prepared = prepared or Prepared(source, settings, METHOD, Path(folder), arguments.every)
            row = prepared.run("JSTDO", Fit, settings)
            results.add(key, {**row, "kbps": kilobits(source, int(row["stream"] + row["networks"]))})


def kilobits(source: Path, size: int) -> float:
    return size * 8 / 1000 / probe(source).seconds


def measure(clip: str, results: Rows, arguments: argparse.Namespace, bar: Any) -> None:
    """All points of a clip that are not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        source = silent(fetch(clip), Path(folder), arguments.frames)
        name = f"{clip}, {arguments.frames} frames" if arguments.frames else clip
        for codec in arguments.codecs:
            for quality in CODECS[codec]:
                key = f"{name} / {codec} / {quality}"
                if key not in results.rows:
                    size, value = encode_at_quality(
                        source, probe(source), Path(folder) / "coded.mkv", codec, quality, arguments.every
                    )
                    results.add(key, {"psnr": value, "kbps": kilobits(source, size)})
                bar.update()
        for codec, scale in product(arguments.lr_codecs, arguments.scales):
            for quality in STREAMS[codec]:
                keys = {w: f"{name} / x{scale}, width {w}, {codec} / {quality}" for w in arguments.widths}
                missing = {w: key for w, key in keys.items() if key not in results.rows}
                if missing:
                    bundle_points(source, scale, codec, quality, missing, results, arguments)
                bar.update(len(keys))


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "stdo_rate", threads=True)
    made.add_argument("--clips", nargs="+", default=["bikes.mp4", "vtest.avi", "cityCC0.mpg", "sports2d.mp4"])
    made.add_argument("--frames", type=int, default=0, help="use only this many frames from the start; 0 takes all")
    made.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS))
    made.add_argument("--scales", nargs="+", type=int, default=[2, 3, 4])
    made.add_argument("--widths", nargs="+", type=int, default=[4, 8, 16])
    made.add_argument("--blocks", type=int, default=2)
    made.add_argument("--steps", type=int, default=3000)
    made.add_argument("--batch-size", type=int, default=4)
    made.add_argument("--max-patches", type=int, default=4096)
    made.add_argument("--weight-dtype", default="int8")
    made.add_argument("--lr-codecs", nargs="+", default=["libx265", "libsvtav1"], choices=list(STREAMS))
    made.add_argument("--every", type=int, default=10, help="measure on every N-th frame")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)

    names = ("blocks", "steps", "batch_size", "max_patches", "weight_dtype", "every")
    results = Rows(arguments.output / "results.json", arguments, names)
    record_run(arguments.output)
    points = sum(len(CODECS[c]) for c in arguments.codecs)
    points += sum(len(STREAMS[c]) for c in arguments.lr_codecs) * len(arguments.scales) * len(arguments.widths)
    with tqdm(total=points * len(arguments.clips), unit="point") as bar:
        for clip in arguments.clips:
            measure(clip, results, arguments, bar)
    report(results, arguments.output)


Curves = dict[str, list[tuple[float, float]]]


def curves_of(results: Rows) -> dict[str, Curves]:
    """clip -> kind -> (kbit/s, dB), sorted; among them each stream by itself, enlarged by bicubic: the anchor that a
    network has to beat."""
    curves: dict[str, Curves] = {}
    for key, row in results.rows.items():
        clip, kind, _ = key.split(" / ")
        curves.setdefault(clip, {}).setdefault(kind, []).append((row["kbps"], row["psnr"]))
        if "bicubic" in row:
            scale, _, codec = kind.split(", ")
            sent = row["kbps"] * row["stream"] / (row["stream"] + row["networks"])
            anchor = curves[clip].setdefault(f"{scale}, {codec} stream by bicubic", [])
            if (sent, row["bicubic"]) not in anchor:  # all widths have one stream
                anchor.append((sent, row["bicubic"]))
    return {clip: {kind: sorted(points) for kind, points in kinds.items()} for clip, kinds in curves.items()}


def report(results: Rows, output: Path) -> None:
    """Table with BD-rates, the choices a budget has, and a plot for each clip."""
    curves, rows = curves_of(results), []
    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves), 4.5), squeeze=False, layout="constrained")
    for ax, (clip, kinds) in zip(axes[0], curves.items(), strict=True):
        for kind, points in kinds.items():
            ax.plot(*zip(*points, strict=True), marker="o", label=kind, linewidth=1 if "width" in kind else 2)
            rates = [bd_rate(kinds[c], points) if c in kinds and len(points) > 1 else np.nan for c in CODECS]
            span = f"{points[0][1]:.1f} to {points[-1][1]:.1f}"
            rows.append([clip, kind, f"{points[0][0]:.0f} to {points[-1][0]:.0f}", span, *(f"{r:+.1%}" for r in rates)])
        ax.set(title=clip, xlabel="kbit/s, everything", ylabel="PSNR of whole frames, dB", xscale="log")
        ax.legend(fontsize=7)
    save(figure, output / "curves.png")
    head = ["clip", "", "kbit/s", "dB", *(f"BD-rate to {c}" for c in CODECS)]
    text = markdown(head, rows) + "\n\n" + choices(results, curves)
    write_table(output / "table.md", text)


def at_rate(points: list[tuple[float, float]], rate: float) -> float:
    """dB of a curve at a rate, linear in the logarithm of the rate; NaN outside of it."""
    rates, quality = np.log(np.array(points)).T[0], np.array(points).T[1]
    inside = rates[0] <= np.log(rate) <= rates[-1]
    return float(np.interp(np.log(rate), rates, quality)) if inside else float("nan")


def choices(results: Rows, curves: dict[str, Curves]) -> str:
    """At rates between the lowest and the highest of the bundles with streams of one codec: the best bundle, codecs
    alone, and the scale by bicubic."""
    rows = []
    for (clip, kinds), stream in product(curves.items(), STREAMS):
        bundles = {kind: points for kind, points in kinds.items() if "width" in kind and kind.endswith(stream)}
        if not bundles:
            continue
        every = [rate for points in bundles.values() for rate, _ in points]
        for rate in np.geomspace(min(every) * 1.1, max(every) / 1.1, 6):
            quality = {k: q for k, points in bundles.items() if not np.isnan(q := at_rate(points, rate))}
            if not quality:
                continue
            best = max(quality, key=quality.__getitem__)
            alone = [at_rate(kinds[c], rate) if c in kinds else np.nan for c in CODECS]
            bicubic = by_bicubic(results, clip, stream, rate)
            scale = max(bicubic, key=bicubic.__getitem__) if bicubic else ""
            same = {k: q for k, q in quality.items() if scale and k.startswith(scale)}
            loss = f"{max(same.values()) - quality[best]:+.2f}" if same else ""
            share = network_share(results, clip, best, rate)
            rows.append([clip, f"{rate:.0f}", best, f"{share:.0%}", f"{quality[best]:.2f}",
                         *(f"{q:.2f}" for q in alone), scale, loss])  # fmt: skip
    head = ["clip", "kbit/s", "best bundle", "networks' share", "dB", *CODECS, "scale by bicubic", "its loss, dB"]
    return markdown(head, rows)


def by_bicubic(results: Rows, clip: str, codec: str, rate: float) -> dict[str, float]:
    """Scale -> dB of the stream at that rate, enlarged by bicubic: what can be measured before any training."""
    points: Curves = {}
    for key, row in results.rows.items():
        name, kind, _ = key.split(" / ")
        if name == clip and "width" in kind:
            kbps = row["kbps"] * row["stream"] / (row["stream"] + row["networks"])
            if kind.endswith(codec):
                points.setdefault(kind.split(",")[0], []).append((kbps, row["bicubic"]))
    values = {scale: at_rate(sorted(set(curve)), rate) for scale, curve in points.items()}
    return {scale: value for scale, value in values.items() if not np.isnan(value)}


def network_share(results: Rows, clip: str, kind: str, rate: float) -> float:
    """Networks' part of the bytes, of a kind of bundle at a rate."""
    rows = [row for key, row in results.rows.items() if key.startswith(f"{clip} / {kind} / ")]
    row = min(rows, key=lambda r: abs(np.log(r["kbps"] / rate)))
    return float(row["networks"] * row["kbps"] / (row["stream"] + row["networks"]) / rate)


if __name__ == "__main__":
    main()
