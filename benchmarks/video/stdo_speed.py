"""What STDO's machinery costs beside its networks: `python -m benchmarks.video.stdo_speed`.

decode: time of all frames through the player (reading, map, halo, rounding) over that of the bare networks on whole
frames. step: time of a training step over forward, backward and Adam's step of the same batch. Both in turns in one
process, medians; a frame or a step each. memory: peak resident memory of encoding and decoding against the number of
frames. peers: time and PSNR of a frame beside general upscalers from the registry that are installed (`stdo_peers.py`),
on the same low-resolution frames.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.harness.timing import ratio, time_in_turns
from benchmarks.video.fetch_clips import CLIPS, fetch
from benchmarks.video.stdo_peers import PEERS, load
from benchmarks.video.stdo_prepared import pooled_psnr
from hf_efficient.methods import VIDEO, settings_of
from hf_efficient.video.encode.fit import Fit, fit_video
from hf_efficient.video.encode.overfit import Recipe, overfit
from hf_efficient.video.encode.patch_store import PatchStore
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import read_frames
from hf_efficient.video.measure.evaluation import enlarged_frames
from hf_efficient.video.patches import to_tensor
from hf_efficient.video.play.decode import decode
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import FitSettings


def against_bare(ours: Callable[[], object], bare: Callable[[], object], units: int, rounds: int) -> dict[str, Any]:
    """Median seconds of a unit of work (a frame, a step) of both, and the median ratio of a round."""
    seconds = time_in_turns({"ours": ours, "bare": bare}, rounds)
    return {
        "ours": median(seconds["ours"]) / units,
        "bare": median(seconds["bare"]) / units,
        "ratio": ratio(seconds, "ours", "bare"),
    }


def made(folder: Path, clip: Path, arguments: argparse.Namespace, **settings: Any) -> Bundle:
    """A bundle, barely trained unless the settings say how long, kept in the folder."""
    path = folder / f"{clip.stem}-{'-'.join(map(str, settings.values()))}-{arguments.features}-{arguments.blocks}"
    if not path.exists():
        return fit_video(
            clip, path, num_features=arguments.features, num_blocks=arguments.blocks, progress_bar=False, device="cpu",
            **({"steps": 4, "max_patches": 256} | settings),
        )  # fmt: skip
    return Bundle.open(path)


def decode_ratio(clip: Path, method: str, k: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Player over bare networks. The bare run sends every whole frame through one network."""
    bundle = made(folder, clip, arguments, method=method, **settings_of(VIDEO, method, num_chunks=k))
    player = Player(bundle)
    lows = [f.rgb for f in islice(read_frames(bundle.low_resolution), arguments.frames)]
    maps = [labels for labels, _ in zip(player.labels(), lows, strict=False)]
    tensors = [to_tensor(low).to(memory_format=torch.channels_last) for low in lows]

    def ours() -> None:
        frames = read_frames(bundle.low_resolution)
        for labels, frame in zip(maps, frames, strict=False):
            player.enlarge(frame.rgb, labels)

    @torch.no_grad()
    def bare() -> None:
        for x in tensors:
            player.experts[0](x)

    return against_bare(ours, bare, len(lows), arguments.rounds)


def step_ratio(clip: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A step of `overfit` over forward, backward and Adam's step of a batch of the same shape."""
    settings = FitSettings(
        method="jstdo", num_features=arguments.features, num_blocks=arguments.blocks, max_patches=256
    )
    fit = Fit(clip, folder / f"step-{clip.stem}", settings, False, torch.device("cpu"))
    fit.prepare(False)
    fit.make_low_resolution()
    fit.score()
    fit.make_stores()
    store = PatchStore(fit.work / "expert-0")
    net = fit.new_network(fit.plan.spec("expert-0"), 0).to(memory_format=torch.channels_last)
    lr, hr = (x.to(memory_format=torch.channels_last) for x in store.batch(np.arange(settings.batch_size)))
    optimizer = torch.optim.Adam(net.parameters())
    steps = 10

    def ours() -> None:
        checkpoint = folder / "step.safetensors"
        checkpoint.unlink(missing_ok=True)  # else it would go on from there, with nothing left to do
        overfit(net, store, Recipe(steps, checkpoint_every=10**9, trim=True), checkpoint)

    def bare() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            F.l1_loss(net(lr, trim=True), hr).backward()
            optimizer.step()

    return against_bare(ours, bare, steps, arguments.rounds)


def beside_peers(clip: Path, scale: int, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds a frame and dB of bicubic, of a bundle and of each peer, all from the stream of that bundle, in turns."""
    peers = load(scale, arguments.threads)
    if not peers:
        print(f"x{scale}: no peer is installed, nothing to compare with.")
        return {}
    fitted = {"steps": arguments.peer_steps, "batch_size": 4, "max_patches": 1024}
    player = Player(made(arguments.folder, clip, arguments, scale=scale, **fitted))
    source, low = player.bundle.source, player.bundle.low_resolution
    every = max(1, source.frames // arguments.frames)
    chosen = slice(0, arguments.frames * every, every)

    def take(stream: Iterable[Any]) -> list[Any]:
        return list(islice(stream, chosen.start, chosen.stop, chosen.step))

    lows, truths = ([f.rgb for f in take(read_frames(path))] for path in (low, clip))
    pairs = list(zip(lows, take(player.labels()), strict=True))
    made_by: dict[str, Callable[[], list[np.ndarray]]] = {
        "ours": lambda: [player.enlarge(rgb, labels) for rgb, labels in pairs],
        **{name: partial(lambda enlarge: [enlarge(rgb) for rgb in lows], peer) for name, peer in peers.items()},
    }
    outputs = {"bicubic": take(enlarged_frames(low, player, "bicubic"))}
    outputs |= {name: action() for name, action in made_by.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, frames in outputs.items():
        cropped = (rgb[: source.height, : source.width] for rgb in frames)
        rows[name] = {"psnr": pooled_psnr(zip(cropped, truths, strict=True))}
        if name in peers:
            rows[name]["version"] = version(PEERS[name].package)
    seconds = time_in_turns(made_by, arguments.rounds, warm_up=False)
    for name, taken in seconds.items():
        rows[name] |= {"seconds": median(taken) / len(lows), "over_ours": ratio(seconds, name, "ours")}
    return rows


def memory(clip: Path, frames: int) -> dict[str, Any]:
    """Peak MiB of encoding at x4 and of decoding the first frames of a clip, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "long.mkv"
        cut = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-i",
            str(clip),
            "-map",
            "0:v:0",
            "-c",
            "copy",
            "-frames:v",
            str(frames),
        ]
        subprocess.run([*cut, str(source)], check=True)
        row: dict[str, Any] = {"frames": sum(1 for _ in read_frames(source))}
        for action in ("encode", "decode"):
            command = [sys.executable, "-m", "benchmarks.video.stdo_speed", "--child", action, name]
            row[action] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return row


def child(action: str, folder: str) -> None:
    """Encode or decode, and print the peak of resident memory in MiB."""
    source, bundle = Path(folder) / "long.mkv", Path(folder) / "bundle"
    if action == "encode":
        fit_video(
            source, bundle, method="jstdo", scale=4, steps=4, max_patches=256, progress_bar=False, device="cpu"
        )  # fmt: skip
    else:
        decode(bundle, Path(folder) / "out.mkv")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "stdo_speed", threads=True)
    made.add_argument("--clips", nargs="+", default=["bikes.mp4", "sports2d.mp4"])
    made.add_argument("--memory-clip", default="bbb_full_720p.mp4", help="a long one")
    made.add_argument("--lengths", nargs="+", type=int, default=[500, 2000, 14315], help="frames, of its beginning")
    parts = ["decode", "step", "memory", "peers"]
    made.add_argument("--only", nargs="+", default=parts, choices=parts)
    made.add_argument("--peer-clip", default="bikes.mp4")
    made.add_argument("--peer-scales", nargs="+", type=int, default=[2, 4], choices=[2, 4])
    made.add_argument("--peer-steps", type=int, default=500, help="training steps of our side, 4 patches each")
    made.add_argument("--features", type=int, default=16)
    made.add_argument("--blocks", type=int, default=2)
    made.add_argument("--frames", type=int, default=24)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, default=CLIPS.parent / "stdo_speed", help="where bundles are kept")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        return child(*arguments.child)

    record_run(arguments.output)
    names = ("features", "blocks", "frames", "rounds", "threads")
    if jobs := jobs_of(arguments):
        results = Rows(arguments.output / "results.json", arguments, names)
        for key, job in jobs.items():
            if key not in results.rows:
                results.add(key, job())
        report(results, arguments.output)
    if "peers" in arguments.only:
        results = Rows(arguments.output / "peers.json", arguments, (*names, "peer_steps"))
        for scale in arguments.peer_scales:
            key = f"{arguments.peer_clip}, x{scale}"
            if key not in results.rows and (rows := beside_peers(fetch(arguments.peer_clip), scale, arguments)):
                results.add(key, rows)
        report_peers(results, arguments.output)
    return None


def jobs_of(arguments: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Key of each row that the options ask for -> what measures it; clips are fetched here."""
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    for clip in arguments.clips:
        if "decode" in arguments.only:
            for method, k in (("jstdo", 4), ("stdo", 2), ("stdo", 4)):
                name = method if method == "jstdo" else f"{method}, k = {k}"
                job = partial(decode_ratio, fetch(clip), method, k, arguments.folder, arguments)
                jobs[f"decode {name} / {clip}"] = job
        if "step" in arguments.only:
            jobs[f"step / {clip}"] = partial(step_ratio, fetch(clip), arguments.folder, arguments)
    if "memory" in arguments.only:
        clip = arguments.memory_clip
        jobs |= {f"memory, {n} frames / {clip}": partial(memory, fetch(clip), n) for n in arguments.lengths}
    return jobs


def report(results: Rows, output: Path) -> None:
    """Table, and the curve of memory."""
    rows = [
        [*key.split(" / "), f"{r['ours'] * 1e3:.1f}", f"{r['bare'] * 1e3:.1f}", f"{r['ratio']:.2f}"]
        for key, r in results.rows.items()
        if "ratio" in r
    ]
    table = markdown(["", "clip", "ours, ms", "bare networks, ms", "ratio"], rows)
    long = [row for row in results.rows.values() if "encode" in row]
    if long:
        body = [[r["frames"], f"{r['encode']:.0f}", f"{r['decode']:.0f}"] for r in long]
        table += "\n\n" + markdown(["frames", "peak MiB, encode", "peak MiB, decode"], body)
        figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
        for action in ("encode", "decode"):
            ax.plot([r["frames"] for r in long], [r[action] for r in long], marker="o", label=action)
        ax.set(xlabel="frames", ylabel="peak resident memory, MiB", ylim=(0, None), xscale="log")
        ax.legend()
        save(figure, output / "memory.png")
    write_table(output / "table.md", table)


def report_peers(results: Rows, output: Path) -> None:
    """Table of the comparison with general upscalers."""
    rows = [
        [key, name, f"{row['psnr']:.2f}", *([f"{row['seconds'] * 1e3:.1f}", f"{row['over_ours']:.2f}"]
         if "seconds" in row else ["", ""])]
        for key, by_name in results.rows.items()
        for name, row in by_name.items()
    ]  # fmt: skip
    if rows:
        write_table(output / "peers.md", markdown(["clip", "", "PSNR, dB", "a frame, ms", "time over ours"], rows))


if __name__ == "__main__":
    main()
