"""What STDO's machinery costs beside its networks: `python benchmarks/stdo_speed.py`.

decode: time of all frames through the player (reading, map, halo, rounding) over that of the bare networks on whole
frames. step: time of a training step over forward and backward of the same batch. Both in turns in one process,
medians. memory: peak resident memory of decoding against the number of frames, each in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np
import torch
from fetch_clips import fetch
from stdo_runs import RESULTS, Results, markdown
from torch.nn import functional as F

from hf_efficient.video.decode import decode
from hf_efficient.video.fit import Fit, fit_video
from hf_efficient.video.media import read_frames
from hf_efficient.video.overfit import Recipe, overfit
from hf_efficient.video.patches import to_tensor
from hf_efficient.video.player import Player
from hf_efficient.video.settings import FitSettings
from hf_efficient.video.store import PatchStore

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def in_turns(rounds: int, *actions: Callable[[], object]) -> list[float]:
    """Median CPU-free wall seconds of each action, measured alternately."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for taken, action in zip(times, actions, strict=True):
            start = time.perf_counter()
            action()
            taken.append(time.perf_counter() - start)
    return [median(taken) for taken in times]


def decode_ratio(clip: Path, method: str, k: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Player over bare networks. The bare run sends every whole frame through one network."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = fit_video(
            clip, Path(folder) / "bundle", method=method, num_chunks=k, steps=4, num_features=arguments.features,
            num_blocks=arguments.blocks, progress_bar=False, device="cpu",
        )  # fmt: skip
        player = Player(bundle)
        lows = [f.rgb for f in read_frames(bundle.low_resolution)][: arguments.frames]
        maps = [labels for labels, _ in zip(player.labels(), lows, strict=False)]
        tensors = [to_tensor(low) for low in lows]

        def ours() -> None:
            frames = read_frames(bundle.low_resolution)
            for labels, frame in zip(maps, frames, strict=False):
                player.enlarge(frame.rgb, labels)

        @torch.no_grad()
        def bare() -> None:
            for x in tensors:
                player.experts[0](x)

        bare()
        mine, theirs = in_turns(arguments.rounds, ours, bare)
    return {"ours": mine, "bare": theirs, "ratio": mine / theirs, "frames": len(lows)}


def step_ratio(clip: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A step of `overfit` over forward and backward of a batch of the same shape, with the same weight norm."""
    settings = FitSettings(num_features=arguments.features, num_blocks=arguments.blocks, max_patches=256)
    with tempfile.TemporaryDirectory() as folder:
        fit = Fit(clip, Path(folder) / "bundle", settings, False, torch.device("cpu"))
        fit.prepare(False)
        fit.make_low_resolution()
        fit.score()
        fit.make_stores()
        store = PatchStore(fit.work / "expert-0")
        net = fit.new_network(fit.plan.spec("expert-0"), 0).to(memory_format=torch.channels_last)
        lr, hr, _ = (x.to(memory_format=torch.channels_last) for x in store.batch(np.arange(settings.batch_size)))
        steps = 10

        def ours() -> None:
            overfit(net, store, Recipe(steps, checkpoint_every=10**9), Path(folder) / f"{time.time_ns()}.pt")

        def bare() -> None:
            for _ in range(steps):
                net.zero_grad(set_to_none=True)
                F.l1_loss(net(lr), hr).backward()

        bare()
        mine, theirs = in_turns(arguments.rounds, ours, bare)
    return {"ours": mine / steps, "bare": theirs / steps, "ratio": mine / theirs}


def memory(clip: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak MiB of decoding so many frames."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = fit_video(
            clip, Path(folder) / "bundle", steps=4, num_features=arguments.features, num_blocks=arguments.blocks,
            progress_bar=False, device="cpu",
        )  # fmt: skip
        total = bundle.source.frames
        for frames in sorted({max(1, total // 8), total // 4, total // 2, total}):
            command = [sys.executable, __file__, "--child", str(bundle.path), str(frames)]
            peaks[frames] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"peak_mib": peaks}


def child(bundle: str, frames: int) -> None:
    """Decode some frames and print the peak of resident memory."""
    with tempfile.TemporaryDirectory() as folder:
        decode(bundle, Path(folder) / "out.mkv", max_frames=frames)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", nargs="+", default=["bikes.mp4", "sports2d.mp4"])
    parser.add_argument("--memory-clip", default="bbb_full_720p.mp4")
    parser.add_argument("--only", nargs="+", default=["decode", "step", "memory"], choices=["decode", "step", "memory"])
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS / "stdo_speed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        return child(arguments.child[0], int(arguments.child[1]))

    names = ("features", "blocks", "frames", "rounds", "threads")
    results = Results(arguments.output / "results.json", {n: getattr(arguments, n) for n in names})
    jobs: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for clip in arguments.clips:
        if "decode" in arguments.only:
            for method, k in (("jstdo", 4), ("stdo", 2), ("stdo", 4)):
                name = method if method == "jstdo" else f"{method}, k = {k}"
                jobs.append((f"decode {name} / {clip}", partial(decode_ratio, fetch(clip), method, k, arguments)))
        if "step" in arguments.only:
            jobs.append((f"step / {clip}", partial(step_ratio, fetch(clip), arguments)))
    if "memory" in arguments.only:
        jobs.append((f"memory / {arguments.memory_clip}", partial(memory, fetch(arguments.memory_clip), arguments)))
    for key, job in jobs:
        if key not in results.rows:
            results.add(key, job())
    report(results, arguments.output)
    return None


def report(results: Results, output: Path) -> None:
    """Table, and the curve of memory."""
    rows = [
        [*key.split(" / "), f"{r['ours'] * 1e3:.1f}", f"{r['bare'] * 1e3:.1f}", f"{r['ratio']:.2f}"]
        for key, r in results.rows.items()
        if "ratio" in r
    ]
    table = markdown(["", "clip", "ours, ms", "bare networks, ms", "ratio"], rows)
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for key, row in results.rows.items():
        if "peak_mib" in row:
            frames, peaks = list(map(int, row["peak_mib"])), list(row["peak_mib"].values())
            ax.plot(frames, peaks, marker="o", label=key.split(" / ")[1])
            table += "\n" + markdown(
                ["frames", "peak MiB"], [[f, f"{p:.0f}"] for f, p in zip(frames, peaks, strict=True)]
            )
    ax.set(xlabel="frames decoded", ylabel="peak resident memory, MiB", ylim=(0, None))
    if ax.lines:
        ax.legend()
        figure.savefig(output / "memory.png", dpi=110)
    (output / "table.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
