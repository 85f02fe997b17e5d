"""Rate-distortion of bundles against codecs alone: `python benchmarks/stdo_rate.py`.

Every byte counts: low-resolution stream, networks, map. A bundle's curve has one point for each quality of its stream;
a codec's one for each constant quality. Sound is left out of both. PSNR is that of whole RGB frames, errors pooled.
BD-rate is against x265. Resumable: each point is written when it is done.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import torch
from fetch_clips import fetch
from stdo_runs import RESULTS, Results, markdown
from tqdm import tqdm

from hf_efficient.video.evaluation import evaluate
from hf_efficient.video.fit import fit_video
from hf_efficient.video.media import probe
from hf_efficient.video.rate import bd_rate, encode_at_quality

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CODECS = {"libx264": (18, 24, 30, 36, 42), "libx265": (18, 24, 30, 36, 42), "libsvtav1": (20, 30, 40, 50, 60)}
STREAM_QUALITIES = (4, 12, 20, 28)


def silent(clip: Path, folder: Path) -> Path:
    """The clip without its sound, its video untouched."""
    target = folder / f"silent{clip.suffix}"
    subprocess.run(["ffmpeg", "-v", "error", "-i", clip, "-map", "0:v:0", "-c", "copy", target], check=True)
    return target


def bundle_point(clip: Path, scale: int, quality: int, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        source = silent(clip, Path(name))
        bundle = fit_video(
            source, Path(name) / "bundle", scale=scale, num_features=arguments.features, num_blocks=arguments.blocks,
            steps=arguments.steps, weight_dtype=arguments.weight_dtype, lr_codec=arguments.lr_codec, lr_quality=quality,
            progress_bar=False, device="cpu",
        )  # fmt: skip
        result = evaluate(bundle.path, source)
        sizes = bundle.sizes()
    stream = next(size for file, size in sizes.items() if file.startswith("low_resolution"))
    networks = sizes["model/model.safetensors"]
    return {"bytes": sum(sizes.values()), "stream": stream, "networks": networks, "psnr": result["stdo"]["psnr"],
            "bicubic": result["bicubic"]["psnr"]}  # fmt: skip


def codec_point(clip: Path, codec: str, quality: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        source = silent(clip, Path(name))
        size, value = encode_at_quality(source, Path(name) / "coded.mkv", codec, quality)
    return {"bytes": size, "psnr": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", nargs="+", default=["bikes.mp4", "sports2d.mp4", "vtest.avi", "cityCC0.mpg"])
    parser.add_argument("--scales", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--features", type=int, default=12)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--weight-dtype", default="int8")
    parser.add_argument("--lr-codec", default="libx265")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "stdo_rate")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    names = ("features", "blocks", "steps", "weight_dtype", "lr_codec")
    results = Results(arguments.output / "results.json", {n: getattr(arguments, n) for n in names})
    jobs = [(clip, codec, q) for clip in arguments.clips for codec, qualities in CODECS.items() for q in qualities]
    jobs += [(clip, f"bundle x{s}", q) for clip in arguments.clips for s in arguments.scales for q in STREAM_QUALITIES]
    for clip, kind, quality in tqdm(jobs, unit="point"):
        key = f"{clip} / {kind} / {quality}"
        if key in results.rows:
            continue
        path = fetch(clip)
        if kind in CODECS:
            row = codec_point(path, kind, quality)
        else:
            row = bundle_point(path, int(kind[-1]), quality, arguments)
        results.add(key, {**row, "kbps": row["bytes"] * 8 / 1000 / (probe(path).seconds or 1)})
    report(results, arguments.output)


def report(results: Results, output: Path) -> None:
    """Table with BD-rates, and a plot for each clip."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key, row in results.rows.items():
        clip, kind, _ = key.split(" / ")
        curves.setdefault(clip, {}).setdefault(kind, []).append((row["kbps"], row["psnr"]))
    rows = []
    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves), 4.5), squeeze=False, layout="constrained")
    for ax, (clip, kinds) in zip(axes[0], curves.items(), strict=True):
        for kind, points in kinds.items():
            ordered = sorted(points)
            ax.plot(*zip(*ordered, strict=True), marker="o", label=kind, linewidth=2 if "bundle" in kind else 1.2)
            value = bd_rate(kinds["libx265"], points) if len(points) > 1 and "libx265" in kinds else float("nan")
            span = f"{ordered[0][1]:.1f} to {ordered[-1][1]:.1f}"
            rows.append([clip, kind, f"{ordered[0][0]:.0f} to {ordered[-1][0]:.0f}", span, f"{value:+.1%}"])
        ax.set(title=clip, xlabel="kbit/s, everything", ylabel="PSNR of whole frames, dB", xscale="log")
        ax.legend(fontsize=8)
    figure.savefig(output / "curves.png", dpi=110)
    head = ["clip", "", "kbit/s", "dB", "BD-rate to x265"]
    (output / "table.md").write_text(markdown(head, rows))
    print((output / "table.md").read_text())


if __name__ == "__main__":
    main()
