"""Bits at equal VMAF: bundles with a delta against codecs alone: `python -m benchmarks.video.rate_vmaf`.

The streams, fits and codecs of `rate.py`, measured by VMAF and by VMAF-NEG, which gives nothing for sharpening, on all
frames. The anchors are bicubic enlargement and the general network on the same streams. What is sent of a network was
chosen by squared error, as it comes. BD-rate is the mean difference of bits over the common range of VMAF, linear
between points. Resumable: each point is written when it is done.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.rate import CODECS, SETTINGS, curves, encoded, fitted, measure_all, options, rates
from hf_efficient.video.files.reader import VideoInfo, probe
from hf_efficient.video.measure.evaluation import evaluate
from hf_efficient.video.measure.vmaf import vmaf_of_file

MEASURES = {"vmaf": "VMAF", "vmaf_neg": "NEG"}
ALONE = tuple(name for name in CODECS if name != "x265, tune=psnr")  # which is made for the other measure
WAYS = {"bicubic": "bicubic", "general": "general", "bundle": "stdo"}  # way of playing -> its name in `evaluate`


def played(source: Path, quality: int, folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Way of playing one stream -> bytes and VMAF."""
    bundle = fitted(source, quality, folder, arguments)
    found = evaluate(bundle.path, source, every=max(1, probe(source).frames // 4), vmaf=True)
    stream, manifest = bundle.low_resolution.stat().st_size, (bundle.path / "bundle.json").stat().st_size
    sent = next(row["bytes"] for row in bundle.manifest["candidates"]["rows"]
                if row["name"] == bundle.manifest["candidates"]["taken"])  # fmt: skip
    sizes = {"bicubic": stream, "general": stream + manifest, "bundle": stream + manifest + sent}
    shutil.rmtree(bundle.path)
    return {way: {"bytes": sizes[way], **{name: found[of][name] for name in MEASURES}} for way, of in WAYS.items()}


def alone(source: Path, info: VideoInfo, codec: str, quality: int, folder: Path) -> dict[str, float]:
    """Bytes and VMAF of a codec alone."""
    file = encoded(source, info, codec, quality, folder)
    return {"bytes": file.stat().st_size, **vmaf_of_file(file, source)}


def write(results: Rows, output: Path) -> None:
    """Tables and a plot a clip."""
    found, text = curves(results), ""
    anchors = ("bicubic", "general", *ALONE)
    for name, label in MEASURES.items():
        rows = []
        for clip, kinds in found.items():
            points = {kind: [(r["bytes"], r[name]) for r in rows_] for kind, rows_ in kinds.items()}
            rows += [[clip, way, *rates(points, way, anchors)] for way in WAYS]
        text += f"**BD-rate, {label}** (negative: fewer bits than the anchor)\n\n"
        text += markdown(["clip", "enlarged by", *anchors], rows) + "\n\n"
    rows = [
        [clip, kind, f"{r['bytes']:,}", f"{r['kbps']:.1f}", *(f"{r[name]:.1f}" for name in MEASURES)]
        for clip, kinds in found.items() for kind, points_ in kinds.items() for r in points_
    ]  # fmt: skip
    text += "**All points**\n\n" + markdown(["clip", "kind", "bytes", "kbit/s", *MEASURES.values()], rows)
    write_table(output / "table.md", text)
    figure, panels = plt.subplots(1, len(found), figsize=(6 * len(found), 4), layout="constrained", squeeze=False)
    for axes, (clip, kinds) in zip(panels[0], found.items(), strict=True):
        for kind, points_ in kinds.items():
            axes.plot([r["kbps"] for r in points_], [r["vmaf"] for r in points_], ".-", label=kind)
        axes.set(xscale="log", xlabel="kbit/s", ylabel="VMAF", title=clip)
        axes.legend(fontsize=7)
    save(figure, output / "vmaf.png")


def parser() -> argparse.ArgumentParser:
    """The options."""
    return options(__doc__, "rate_vmaf", ["bikes.mp4", "sports2d.mp4"])


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    results = Rows(arguments.output / "results.json", arguments, (*SETTINGS, "seed"))
    record_run(arguments.output)
    measure_all(arguments, results, {way: way for way in WAYS}, ALONE, played, alone, write)


if __name__ == "__main__":
    main()
