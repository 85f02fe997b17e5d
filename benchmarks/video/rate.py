"""Bits at equal quality, luma and RGB: bundles with a delta against codecs alone: `python -m benchmarks.video.rate`.

For each clip and quality one AV1 stream at half the size, and on it everything that `method="delta"` compares: bicubic
enlargement, the 5 x 5 filter, the general network, scales and biases, the delta. Bicubic counts the stream alone;
all others the stream, bundle.json, config.json and what is sent of the network. Codecs alone: SVT-AV1, x265 (as it
is, and with tune=psnr) and x264, slow presets. Sound is left out. PSNR is that of whole frames, errors pooled over
every N-th frame. BD-rate is the mean difference of bits over the common range of PSNR, linear between points.
Resumable: each point is written when it is done.
"""

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.fetch_clips import fetch
from benchmarks.video.stdo_rate import silent
from hf_efficient import fit_video
from hf_efficient.video.codecs import encoder_options
from hf_efficient.video.encode.candidates import SAMPLES
from hf_efficient.video.files.reader import VideoInfo, probe, read_frames
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.measure.rate_distortion import bd_rate
from hf_efficient.video.networks.backbones.luma import luma
from hf_efficient.video.networks.general import whole_or_half
from hf_efficient.video.patches import psnr, to_tensor

CLIPS = {"bikes.mp4": 250, "bigbuckbunny.mp4": 100, "sports2d.mp4": 60, "vtest.avi": 100}  # and their first frames
#: Name -> encoder, further options, qualities.
CODECS: dict[str, tuple[str, dict[str, str], tuple[int, ...]]] = {
    "SVT-AV1": ("libsvtav1", {}, (44, 52, 58, 63, 68, 70)),
    "x265": ("libx265", {}, (30, 34, 38, 42, 46)),
    "x265, tune=psnr": ("libx265", {"tune": "psnr"}, (30, 34, 38, 42, 46)),
    "x264": ("libx264", {}, (28, 32, 36, 40, 44)),
}
STREAM_QUALITIES = (44, 50, 56, 62)
PARTS = ("bicubic", "filter", "general", "scales", "delta")
AHEAD = ("over SVT-AV1 alone, luma", "RGB")
#: (source, quality, folder, arguments) -> part -> row; (source, info, codec, quality, folder) -> row.
OfStream = Callable[[Path, int, Path, argparse.Namespace], dict[str, dict[str, Any]]]
OfCodec = Callable[[Path, VideoInfo, str, int, Path], dict[str, Any]]
SETTINGS = ("scale", "features", "steps", "batch_size", "max_patches", "downscaling")  # of all rows of a file
MEASURES = {"psnr_luma": "luma", "psnr": "RGB"}


def encoded(source: Path, info: VideoInfo, name: str, quality: int, folder: Path) -> Path:
    """The file of a codec alone."""
    encoder, more, _ = CODECS[name]
    options = encoder_options(encoder, quality) | more
    color = replace(info.color, space=info.color.matrix(info.height))
    target = folder / "coded.mkv"
    with VideoWriter(target, replace(info, color=color), (info.width, info.height), encoder, options=options) as writer:
        for frame in read_frames(source, info):
            writer.write(*frame)
    return target


def codec_point(source: Path, info: VideoInfo, name: str, quality: int, folder: Path) -> dict[str, float]:
    """Bytes and PSNR of a codec alone."""
    target = encoded(source, info, name, quality, folder)
    every, errors = max(1, info.frames // SAMPLES), []
    for coded, true in islice(zip(read_frames(target), read_frames(source, info), strict=True), 0, None, every):
        a, b = to_tensor(coded.rgb), to_tensor(true.rgb)
        errors.append((float((a - b).square().mean()), float((luma(a) - luma(b)).square().mean())))
    rgb, y = np.mean(errors, 0)
    return {"bytes": target.stat().st_size, "psnr": round(psnr(rgb), 4), "psnr_luma": round(psnr(y), 4)}


def fitted(source: Path, quality: int, folder: Path, arguments: argparse.Namespace) -> Any:
    """The bundle of one stream."""
    return fit_video(
        source, folder / "bundle", method="delta", scale=arguments.scale, downscaling=arguments.downscaling,
        num_features=arguments.features,
        lr_codec="libsvtav1", lr_quality=quality, steps=arguments.steps, batch_size=arguments.batch_size,
        max_patches=arguments.max_patches, seed=arguments.seed, overwrite=True, progress_bar=False, device="cpu",
    )  # fmt: skip


def bundle_points(
    source: Path, quality: int, folder: Path, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Bytes and PSNR of every part on one stream, and of what was taken ("bundle")."""
    bundle = fitted(source, quality, folder, arguments)
    stream, manifest = bundle.low_resolution.stat().st_size, (bundle.path / "bundle.json").stat().st_size
    record, points = bundle.manifest["candidates"], {}
    for row in record["rows"]:
        size = stream if row["name"] == "bicubic" else stream + manifest + row["bytes"]
        points[row["name"]] = {"bytes": size, "psnr": row["psnr"], "psnr_luma": row["psnr_luma"], "model": row["bytes"]}
    points["bundle"] = points[record["taken"]] | {"taken": record["taken"]}
    shutil.rmtree(bundle.path)
    return points


def measure(
    clip: str, results: Rows, arguments: argparse.Namespace, bar: Any, kinds: Mapping[str, str],
    codecs: Sequence[str], of_stream: OfStream, of_codec: OfCodec,
) -> None:  # fmt: skip
    """All points of a clip that are not there yet: of each stream its parts (part -> kind), then of codecs alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = silent(fetch(clip), folder, CLIPS[clip])
        info = probe(source)

        def add(key: str, row: dict[str, Any]) -> None:
            results.add(key, {**row, "kbps": row["bytes"] * 8 / 1000 / info.seconds})

        for quality in arguments.qualities:
            keys = {part: f"{clip} / {kind} / {quality}" for part, kind in kinds.items()}
            if keys["bundle"] not in results.rows:
                for part, row in of_stream(source, quality, folder, arguments).items():
                    add(keys[part], row)
            bar.update()
        for codec in codecs:
            for quality in CODECS[codec][2]:
                if (key := f"{clip} / {codec} / {quality}") not in results.rows:
                    add(key, of_codec(source, info, codec, quality, folder))
                bar.update()


def measure_all(
    arguments: argparse.Namespace, results: Rows, kinds: Mapping[str, str], codecs: Sequence[str],
    of_stream: OfStream, of_codec: OfCodec, write: Callable[[Rows, Path], None],
) -> None:  # fmt: skip
    """All clips, each written when it is done."""
    each = len(arguments.qualities) + sum(len(CODECS[codec][2]) for codec in codecs)
    with tqdm(total=each * len(arguments.clips), unit="point") as bar:
        for clip in arguments.clips:
            measure(clip, results, arguments, bar, kinds, codecs, of_stream, of_codec)
            write(results, arguments.output)


def options(about: str | None, name: str, clips: list[str]) -> argparse.ArgumentParser:
    """Of the clips, streams and fits."""
    made = common_parser(about, name, threads=True)
    made.add_argument("--clips", nargs="+", default=clips, choices=list(CLIPS))
    made.add_argument("--scale", type=whole_or_half, default=2)
    made.add_argument("--downscaling", default="bicubic", choices=["bicubic", "back-projected"])
    made.add_argument("--features", type=int, default=8)
    made.add_argument("--steps", type=int, default=600)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--max-patches", type=int, default=2048)
    made.add_argument("--seed", type=int, default=0, help="of the fits")
    made.add_argument("--qualities", nargs="+", type=int, default=STREAM_QUALITIES, help="of the streams")
    return made


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = options(__doc__, "rate", list(CLIPS))
    made.add_argument("--codecs-from", type=Path, help="folder of results whose codecs alone are taken, not measured")
    return made


def curves(results: Rows) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Clip -> kind -> points in the order of bytes."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for key, row in results.rows.items():
        clip, kind, _ = key.split(" / ")
        found.setdefault(clip, {}).setdefault(kind, []).append(row)
    return {
        clip: {kind: sorted(p, key=lambda r: r["bytes"]) for kind, p in kinds.items()} for clip, kinds in found.items()
    }


def ahead(row: dict[str, Any], anchor: list[dict[str, Any]], measure_name: str) -> str:
    """dB by which a point is above a curve at its bytes, linear in their logarithm; "" outside of the curve."""
    bytes_, quality = np.array([(r["bytes"], r[measure_name]) for r in anchor]).T
    if not bytes_[0] <= row["bytes"] <= bytes_[-1]:
        return ""
    return f"{row[measure_name] - np.interp(np.log(row['bytes']), np.log(bytes_), quality):+.2f}"


def rates(points: Mapping[str, list[tuple[float, float]]], kind: str, anchors: Sequence[str]) -> list[str]:
    """BD-rates of a kind against others, for cells; "" where there is none."""
    gains = [bd_rate(points[anchor], points[kind]) if anchor in points else math.nan for anchor in anchors]
    return ["" if math.isnan(gain) else f"{100 * gain:+.1f} %" for gain in gains]


def write(results: Rows, output: Path) -> None:
    """Tables and plots of all points."""
    found, text = curves(results), ""
    for measure_name, label in MEASURES.items():
        rows = []
        for clip, kinds in found.items():
            points = {kind: [(r["bytes"], r[measure_name]) for r in rows_] for kind, rows_ in kinds.items()}
            own = [next((kind for kind in points if kind.endswith(part)), "") for part in ("bicubic", "general")]
            anchors = [*own, "SVT-AV1", "x265", "x265, tune=psnr", "x264"]
            rows += [[clip, kind, *rates(points, kind, anchors)] for kind in points if kind not in CODECS]
        head = ["clip", "enlarged by", "bicubic", "general", "SVT-AV1", "x265", "x265, tune=psnr", "x264"]
        text += f"**BD-rate, {label}** (negative: fewer bits than the anchor)\n\n{markdown(head, rows)}\n\n"
    rows = [
        [clip, kind, f"{r['bytes']:,}", f"{r['kbps']:.1f}", f"{r['psnr_luma']:.2f}", f"{r['psnr']:.2f}",
         r.get("taken", ""), *(ahead(r, kinds["SVT-AV1"], name) if "SVT-AV1" in kinds else "" for name in MEASURES)]
        for clip, kinds in found.items() for kind, points_ in kinds.items() for r in points_
    ]  # fmt: skip
    text += "**All points**\n\n" + markdown(
        ["clip", "kind", "bytes", "kbit/s", "luma, dB", "RGB, dB", "taken", *AHEAD], rows
    )
    write_table(output / "table.md", text)
    for clip, kinds in found.items():
        figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
        for axis, (measure_name, label) in zip(axes, MEASURES.items(), strict=True):
            for kind, points_ in kinds.items():
                if not kind.endswith(("filter", "scales", "delta")):
                    axis.plot([r["kbps"] for r in points_], [r[measure_name] for r in points_], ".-", label=kind)
            axis.set(xscale="log", xlabel="kbit/s", ylabel=f"PSNR of {label}, dB", title=clip)
        axes[0].legend(fontsize=7)
        save(figure, output / f"{Path(clip).stem}.png")


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    output = arguments.output
    results = Rows(output / "results.json", arguments, SETTINGS)
    record_run(output)
    if arguments.codecs_from:
        measured = json.loads((arguments.codecs_from / "results.json").read_text())["rows"]
        for key, row in measured.items():
            clip, kind, _ = key.split(" / ")
            if clip in arguments.clips and kind in CODECS and key not in results.rows:
                results.add(key, row)
    kinds = {part: f"x{arguments.scale} {part}" for part in (*PARTS, "bundle")}
    measure_all(arguments, results, kinds, list(CODECS), bundle_points, codec_point, write)


if __name__ == "__main__":
    main()
