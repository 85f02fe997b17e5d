"""`hf-efficient stdo encode | decode | export | info | evaluate | compare`."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_efficient.extras import extra
from hf_efficient.files import check_output, check_report, write_text, written_whole

from .output import Content, as_json
from .push import push
from .stdo_info import info, played_bytes, sizes_of


def run(arguments: argparse.Namespace) -> Content:
    """Run the chosen action. Its errors are ValueError, OSError or ImportError, and say what to change."""
    import torch

    if getattr(arguments, "threads", None):
        torch.set_num_threads(arguments.threads)
    actions: dict[str, Callable[[argparse.Namespace], Content]] = {
        "encode": encode, "decode": decode, "export": export, "info": info, "evaluate": evaluate, "compare": compare,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        return actions[arguments.action](arguments)


def encode(arguments: argparse.Namespace) -> Content:
    """Encode a video as a bundle."""
    from hf_efficient.video.encode.budget import spend
    from hf_efficient.video.encode.fit import fit_video
    from hf_efficient.video.encode.rate_control import parse_rate, settings_for_rate
    from hf_efficient.video.encode.work_folder import WorkFolder
    from hf_efficient.video.settings import FitSettings

    given = {f.name: getattr(arguments, f.name) for f in fields(FitSettings) if hasattr(arguments, f.name)}
    settings = FitSettings(**given)
    walk = {name: getattr(arguments, name) for name in ("optimize", "codecs") if getattr(arguments, name) is not None}
    if walk and arguments.budget is None:
        raise ValueError(f"--{next(iter(walk))} is read only with --budget RATE; without it leave it out.")
    WorkFolder(arguments.bundle).check(arguments.source, arguments.overwrite)
    if arguments.budget is not None and not settings.assignment.starts_from_general:  # networks are sent whole
        settings = settings_for_rate(arguments.source, parse_rate(arguments.budget), given)
    elif arguments.budget is not None:
        plain = check_output(arguments.bundle.with_name(f"{arguments.bundle.name}.mkv"), "file", [arguments.source])
        if plain.exists() and not arguments.overwrite:
            raise FileExistsError(f"{str(plain)!r} exists: choose another name, or --overwrite.")
        chosen = spend(arguments.source, parse_rate(arguments.budget), plain, given, **walk)
        if chosen is None:
            print(f"{plain}: at this rate the codec alone is better than a bundle, so this is its file")
            return {"file": plain, "bytes": plain.stat().st_size}
        settings = chosen
    bundle = fit_video(
        arguments.source, arguments.bundle, overwrite=arguments.overwrite, device=arguments.device, settings=settings
    )
    print(f"{bundle.path}: {played_bytes(bundle):,} bytes, {bundle.kilobits:.0f} kbit/s")
    return {"bundle": bundle.path, **sizes_of(bundle), "uploaded": push(bundle.path, arguments)}


def decode(arguments: argparse.Namespace) -> Content:
    """Decode a bundle to a video."""
    from hf_efficient.video.play.decode import decode as decode_bundle
    from hf_efficient.video.play.player import Player

    check_output(arguments.output, "file")
    if arguments.output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{str(arguments.output)!r} exists: choose another name, or --overwrite.")
    player = Player(arguments.bundle, arguments.device)
    with tqdm(total=player.bundle.source.frames, desc="decoding", unit="frame") as bar:
        decode_bundle(
            player, arguments.output, arguments.codec, arguments.quality, arguments.preset, progress=bar.update
        )
    print(arguments.output)
    size = arguments.output.stat().st_size
    return {"output": arguments.output, "frames": player.bundle.source.frames, "bytes": size}


def export(arguments: argparse.Namespace) -> Content:
    """Write what players without torch need of a bundle."""
    from hf_efficient.video.export.export import export_bundle

    made = export_bundle(
        arguments.bundle, arguments.output, arguments.format, arguments.runtime, arguments.overwrite
    )  # fmt: skip
    sizes = {path.name: path.stat().st_size for path in sorted(made.path.rglob("*")) if path.is_file()}
    print("\n".join(f"{size:>11,} {name}" for name, size in sizes.items()))
    if arguments.format == "web":
        print(f"Serve it and open it: python {made.path / 'serve.py'}")
    else:
        print(f"Play it where onnxruntime, av and numpy are: python {made.path / 'player.pyz'} {made.path} out.mp4")
    return {"output": made.path, "files": sizes}


def evaluate(arguments: argparse.Namespace) -> Content:
    """Print the quality of a bundle as a table; write it as JSON and PNG if a folder is given."""
    from hf_efficient.video.files.bundle import Bundle
    from hf_efficient.video.measure.evaluation import evaluate as measure

    if arguments.output:
        check_report(
            arguments.output,
            "evaluation.json",
            [r"evaluation\.png"],
            "frame_psnr",
            [arguments.bundle, arguments.source],
        )
    Bundle.open(arguments.bundle).probe_source(arguments.source)
    with tqdm(desc="comparing", unit="frame") as bar:
        result = measure(
            arguments.bundle,
            arguments.source,
            every=arguments.every,
            vmaf=arguments.vmaf,
            device=arguments.device,
            progress=bar.update,
        )
    print(quality_table(result))
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_text(arguments.output / "evaluation.json", as_json(result))
        draw(result, arguments.output / "evaluation.png")
        print(f"evaluation.json and evaluation.png are in {arguments.output}")
    return result


def quality_table(result: dict[str, Any]) -> str:
    """The results of `evaluate` as a Markdown table."""
    lines = ["| | PSNR, whole frames | of luma | mean of frames | paper's metric | SSIM | flicker | VMAF | VMAF-NEG |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in ("stdo", "general", "bicubic", "lanczos"):
        q = result[name]
        decibels = " | ".join(f"{q[f'psnr{kind}']:.2f}" for kind in ("", "_luma", "_frame_mean", "_paper"))
        lines.append(f"| {name} | {decibels} | {perceived(q)} |")
    lines += ["", "| network | patches | paper's metric | bicubic |", "|---|---|---|---|"]
    for row in result["chunks"]:
        ours, theirs = row["psnr_paper_stdo"], row["psnr_paper_bicubic"]
        lines.append(f"| {row['expert']} | {row['patches']} | {ours:.2f} | {theirs:.2f} |")
    lines += [
        "",
        f"Flicker: RMS of what changes in the {result['still']:.0%} of the source that stand still, levels of 255.",
    ]
    return "\n".join(lines)


def perceived(q: dict[str, float]) -> str:
    """Cells of SSIM, flicker, VMAF and VMAF-NEG; those that were not measured are empty."""
    vmaf = [f"{q[name]:.2f}" if name in q else "" for name in ("vmaf", "vmaf_neg")]
    flicker = "" if math.isnan(q["flicker"]) else f"{q['flicker']:.2f}"  # nothing stands still in the source
    return " | ".join([f"{q['ssim']:.4f}", flicker, *vmaf])


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot the PSNR of every frame, and the gain of the networks in every patch."""
    with extra("video"):
        import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, curve in result["frame_psnr"].items():
        left.plot(curve, label=name, linewidth=1.2)
    left.set(xlabel="frame", ylabel="PSNR of the whole frame, dB")
    left.legend()
    image = right.imshow(result["patch_gain"], cmap="RdBu", vmin=-3, vmax=3)
    right.set(title="gain over bicubic in each patch, dB", xlabel="column of patches", ylabel="row of patches")
    figure.colorbar(image, ax=right)
    with written_whole(path) as draft:
        figure.savefig(draft, dpi=120)
    plt.close(figure)


def compare(arguments: argparse.Namespace) -> Content:
    """Compare a bundle with codecs of the same size, and with plain enlargement of its own stream."""
    from hf_efficient.video.files.bundle import Bundle
    from hf_efficient.video.measure.evaluation import evaluate as measure
    from hf_efficient.video.measure.evaluation import quality_of_file
    from hf_efficient.video.measure.rate_distortion import encode_at_size
    from hf_efficient.video.measure.vmaf import vmaf_of_file

    info = Bundle.open(arguments.bundle).probe_source(arguments.source)
    with tqdm(desc="comparing", unit="frame") as bar:
        result = measure(
            arguments.bundle, arguments.source, vmaf=arguments.vmaf, device=arguments.device, progress=bar.update
        )
    total = sum(result["bytes"].values())
    rows = [("stdo", total, result["stdo"])]
    stream = next(size for name, size in result["bytes"].items() if name.startswith("low_resolution"))
    rows += [(f"stream, {name}", stream, result[name]) for name in ("general", "bicubic", "lanczos")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "codec.mkv"
        for codec in tqdm(arguments.codecs, desc="codecs"):
            size, psnr = encode_at_size(arguments.source, info, file, codec, total)
            found = {"psnr": psnr, **quality_of_file(file, arguments.source, info)}
            rows.append((codec, size, found | (vmaf_of_file(file, arguments.source) if arguments.vmaf else {})))
    print("| | bytes | PSNR, whole frames | SSIM | flicker | VMAF | VMAF-NEG |\n|---|---|---|---|---|---|---|")
    for name, size, quality in rows:
        print(f"| {name} | {size:,} | {quality['psnr']:.2f} | {perceived(quality)} |")
    print(f"\n{verdict([(name, size, quality['psnr']) for name, size, quality in rows])}")
    return {"rows": [{"name": name, "bytes": size, **quality} for name, size, quality in rows]}


def verdict(rows: Sequence[tuple[str, int, float]]) -> str:
    """What to send, by name, bytes and PSNR of each row of a comparison; the bundle is the first.

    A codec has no quality that is small enough for some bundles: its file, larger than the bundle, tells nothing.
    """
    _, total, ours = rows[0]
    large = [name for name, size, _ in rows if size > total]
    left_out = f" Larger than the bundle at any quality, not compared: {', '.join(large)}." if large else ""
    best, _, theirs = max((row for row in rows[1:] if row[1] <= total), key=lambda row: row[2])
    ahead = "0.00" if theirs == ours else f"{abs(theirs - ours):.2f}"  # both may be infinite
    if ahead == "0.00":
        said = f"By PSNR the bundle is level with {best}."
    elif ours > theirs:
        said = f"By PSNR the bundle is {ahead} dB ahead of {best}."
    elif best.startswith("stream, "):
        said = f"By PSNR the network does not pay: {best.removeprefix('stream, ')} enlarges {ahead} dB better."
    else:
        said = (
            f"By PSNR {best} alone is {ahead} dB better at these bytes: send that, or a lower rate "
            "(`hf-efficient stdo encode --budget` tries rates and codecs, full size included)."
        )
    return said + left_out
