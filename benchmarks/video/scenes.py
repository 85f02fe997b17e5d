"""Deltas by scene on clips of several shots and on minutes of a film: `python -m benchmarks.video.scenes`.

For each clip and quality one AV1 stream at half the size, and one fit of `method="delta"` with `--scenes`: what the
general network, scales and biases, the delta of the whole video and deltas by scene cost and give. PSNR of luma on
whole frames, errors pooled over every N-th. The cost is D + λR, what the choice is made by, over that of the whole
video's delta: 0.99 is one percent of the bits of stream and network together, as near as λ says. With `--codecs` also
codecs alone at full size, slow presets, at qualities on both sides of that of the stream at crf 56, and the bits of
every part against theirs at equal PSNR, linear in the logarithm of bits. Sound is left out, and bundle.json (550
bytes). Resumable: each point is written when it is done.
"""

import argparse
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.fetch_clips import fetch
from benchmarks.video.rate import codec_point
from benchmarks.video.stdo_rate import silent
from hf_efficient import fit_video
from hf_efficient.video.files.reader import probe

#: Clip -> its first frames, and the width that they are reduced to (0: as they are): six shots of streets and faces;
#: two minutes of an animated film; and a hundred frames each of four clips that have nothing in common, joined.
CLIPS = {"bikes.mp4": (250, 0), "bbb_full_720p.mp4": (2880, 640), "joined": (400, 640)}
JOINED = ("bikes.mp4", "bigbuckbunny.mp4", "sports2d.mp4", "vtest.avi")
PARTS = ("bicubic", "general", "scales", "delta", "scenes")
CODECS = {"SVT-AV1": (61, 65, 69), "x265": (38, 42), "x264": (36, 40, 44)}  # codec alone -> its crf


def opened(clip: str, folder: Path) -> Path:
    """The first frames of a clip, without sound; reduced ones are coded without loss."""
    frames, width = CLIPS[clip]
    if not width:
        return silent(fetch(clip), folder, frames)
    target = folder / "reduced.mp4"
    names = JOINED if clip == "joined" else (clip,)
    each = frames // len(names)
    size = f"scale={width}:{width * 9 // 16}:flags=lanczos,setsar=1,setpts=N/25/TB"
    parts = [f"[{n}:v]trim=end_frame={each},{size}[p{n}]" for n in range(len(names))]
    labels = "".join(f"[p{n}]" for n in range(len(names)))
    graph = ";".join([*parts, f"{labels}concat=n={len(names)}[all]"])
    inputs = [word for name in names for word in ("-i", fetch(name))]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs, "-filter_complex", graph, "-map", "[all]"]
    subprocess.run([*command, "-r", "25", "-c:v", "libx264", "-qp", "0", "-preset", "ultrafast", target], check=True)
    return target


def point(clip: str, quality: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes and dB of every part, and what the scenes took."""
    with tempfile.TemporaryDirectory() as name:
        source = opened(clip, Path(name))
        bundle = fit_video(
            source, Path(name) / "bundle", method="delta", scale=2, num_features=8, lr_codec="libsvtav1",
            lr_quality=quality, steps=arguments.steps, batch_size=arguments.batch_size,
            max_patches=arguments.max_patches, scenes=arguments.scenes, progress_bar=False, device="cpu",
        )  # fmt: skip
        record, stream = bundle.manifest["candidates"], bundle.low_resolution.stat().st_size
    rows = {row["name"]: row for row in record["rows"]}
    errors = {name: 10 ** (-row["psnr_luma"] / 10) for name, row in rows.items()}
    costs = {name: errors[name] + errors["bicubic"] * row["bytes"] / stream for name, row in rows.items()}
    ways = Counter(scene["by"] for scene in record.get("scenes", []))
    return {
        "stream": stream, "frames": CLIPS[clip][0], "taken": record["taken"], "ways": dict(ways),
        "parts": {name: [row["bytes"], row["psnr_luma"], costs[name] / costs["delta"]] for name, row in rows.items()},
    }  # fmt: skip


def measure_codecs(clip: str, codecs: Sequence[str], results: Rows) -> None:
    """Bytes and dB of codecs alone at full size, those that are not there yet."""
    wanted = {f"{clip} / {codec} / {quality}": (codec, quality) for codec in codecs for quality in CODECS[codec]}
    missing = {key: of for key, of in wanted.items() if key not in results.rows}
    if not missing:
        return
    with tempfile.TemporaryDirectory() as name:
        info = probe(source := opened(clip, Path(name)))
        for key, (codec, quality) in missing.items():
            found = codec_point(source, info, codec, quality, Path(name))
            results.add(key, {**found, "kbps": found["bytes"] * 8 / 1000 / info.seconds})


def over(size: int, quality: float, codec: list[dict[str, Any]]) -> str:
    """By how much `size` bytes are more than a codec's at a PSNR of luma; "" where it has no points on both sides."""
    known, bytes_ = np.array(sorted((point["psnr_luma"], point["bytes"]) for point in codec)).T
    if not known[0] <= quality <= known[-1]:
        return ""
    percent = 100 * (size / np.exp(np.interp(quality, known, np.log(bytes_))) - 1)
    return f"{round(float(percent), 1) + 0:+.1f} %"  # a zero has no minus


def write(results: Rows, output: Path) -> None:
    """The tables."""
    rows = {tuple(key.split(" / ")): row for key, row in results.rows.items()}
    alone = {key: row for key, row in rows.items() if len(key) == 3}  # clip, codec, quality; streams have no codec
    codecs: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, row in alone.items():
        codecs.setdefault(key[:2], []).append(row)
    lines = []
    for (clip, quality), row in ((key, row) for key, row in rows.items() if key not in alone):
        ways = ", ".join(f"{count} {way}" for way, count in row["ways"].items())
        for name in PARTS:
            if name in row["parts"]:
                size, quality_luma, cost = row["parts"][name]
                sent = row["stream"] if name == "bicubic" else row["stream"] + size
                against = [over(sent, quality_luma, codecs[clip, c]) if (clip, c) in codecs else "" for c in CODECS]
                taken = "taken" if name == row["taken"] else ""
                lines.append(
                    [clip, quality, f"{row['stream']:,}", name, f"{size:,}", f"{quality_luma:.2f}", f"{cost:.4f}",
                     *against, ways if name == "scenes" else "", taken]
                )  # fmt: skip
    head = ["clip", "crf", "stream, bytes", "played by", "bytes sent", "luma, dB", "cost",
            *(f"bits over {codec}'s" for codec in CODECS), "scenes played by", ""]  # fmt: skip
    text = markdown(head, lines)
    if alone:
        points = [[*key, f"{row['bytes']:,}", f"{row['kbps']:.1f}", f"{row['psnr_luma']:.2f}"]
                  for key, row in alone.items()]  # fmt: skip
        text += "\n\n**Codecs alone**\n\n" + markdown(
            ["clip", "codec", "crf", "bytes", "kbit/s", "luma, dB"], sorted(points)
        )
    write_table(output / "table.md", text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "scenes", threads=True)
    made.add_argument("--clips", nargs="+", default=list(CLIPS), choices=list(CLIPS))
    made.add_argument("--qualities", nargs="+", type=int, default=[50, 56])
    made.add_argument("--scenes", type=int, default=24)
    made.add_argument("--codecs", nargs="*", default=[], choices=list(CODECS), help="measured alone as well")
    made.add_argument("--steps", type=int, default=600)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--max-patches", type=int, default=4096)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    output = arguments.output
    results = Rows(output / "results.json", arguments, ("scenes", "steps", "batch_size", "max_patches"))
    record_run(output)
    for clip in tqdm(arguments.clips, unit="clip"):
        for quality in arguments.qualities:
            key = f"{clip} / {quality}"
            if key not in results.rows:
                results.add(key, point(clip, quality, arguments))
            write(results, output)
        measure_codecs(clip, arguments.codecs, results)
        write(results, output)


if __name__ == "__main__":
    main()
