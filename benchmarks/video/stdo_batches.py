"""Whether networks play faster in batches, and what decoding once saves: `python -m benchmarks.video.stdo_batches`.

All in turns in one process, in CPU time of one thread. "boxes" is the player: the patches of a network are joined to
boxes, each run by itself. "batch" runs a network's patches, all of one size, each with its own halo, in one batch.
"once" is `evaluate`, which decodes the small stream once; "each" lets every way to enlarge decode it by itself.
"""

import argparse
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.harness.timing import ratio, time_in_turns
from benchmarks.video.fetch_clips import CLIPS, fetch
from benchmarks.video.stdo_speed import made
from hf_efficient.video.files.reader import read_frames
from hf_efficient.video.measure.evaluation import Quality, enlarged_frames, evaluate, general_frames
from hf_efficient.video.networks.inference import enlarge, enlarge_inner
from hf_efficient.video.patches import replicate_border, to_tensor
from hf_efficient.video.play.player import Player


@torch.no_grad()
def in_batches(player: Player, frame: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    """`enlarge`, with the patches of a network in one batch; those at the lower and right border reach inwards."""
    height, width, s = *frame.shape[-2:], player.config.scale
    high, wide = player.config.patch_height, player.config.patch_width
    result = frame.new_empty(1, s * height, s * width, 3).permute(0, 3, 1, 2)
    for m in np.unique(labels).tolist():
        halo = player.specs[m].receptive_radius
        padded = replicate_border(frame, halo)
        whole = [(i * high, j * wide) for i, j in np.argwhere(labels == m).tolist()]
        moved = [(min(y, height - high), min(x, width - wide)) for y, x in whole]
        batch = torch.cat([padded[..., y : y + high + 2 * halo, x : x + wide + 2 * halo] for y, x in moved])
        large = enlarge_inner(player.experts[m], player.specs[m], batch.to(memory_format=torch.channels_last))
        for (y, x), (top, left), patch in zip(whole, moved, large, strict=True):
            below, after = top + high, left + wide
            result[0, :, s * y : s * below, s * x : s * after] = patch[:, s * (y - top) :, s * (x - left) :]
    return result


def playing(clip: Path, k: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Boxes and batches over the bare network, and the largest difference of the two."""
    player = Player(made(arguments.folder, clip, arguments, method="stdo", num_chunks=k))
    lows = [f.rgb for f in islice(read_frames(player.bundle.low_resolution), arguments.frames)]
    frames = [to_tensor(low).to(memory_format=torch.channels_last) for low in lows]
    maps = [labels for labels, _ in zip(player.labels(), frames, strict=False)]
    size = (player.config.patch_height, player.config.patch_width)
    ways: dict[str, Callable[[torch.Tensor, np.ndarray], torch.Tensor]] = {
        "bare": lambda x, _: player.experts[0](x),
        "boxes": lambda x, labels: enlarge(list(player.experts), player.specs, x, labels, size),
        "batch": lambda x, labels: in_batches(player, x, labels),
    }

    @torch.no_grad()
    def run(name: str) -> list[torch.Tensor]:
        return [ways[name](x, labels) for x, labels in zip(frames, maps, strict=True)]

    pairs = zip(run("boxes"), run("batch"), strict=True)
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    jobs = {name: lambda name=name: run(name) for name in ways}  # type: ignore[misc]
    seconds = time_in_turns(jobs, arguments.rounds, clock=time.process_time)
    row: dict[str, Any] = {name: median(taken) / len(frames) for name, taken in seconds.items()}
    return row | {f"{name} / bare": ratio(seconds, name, "bare") for name in ("boxes", "batch")} | {"apart": apart}


def measuring(clip: Path, every: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """`evaluate` against the same measures with a decoder for each way."""
    player = Player(made(arguments.folder, clip, arguments, method="stdo", num_chunks=2))
    low = player.bundle.low_resolution

    def each() -> None:
        shown = [(frame.rgb for frame in player.frames(every)), general_frames(low, player, every)]
        shown += [enlarged_frames(low, player, name, every) for name in ("bicubic", "lanczos")]
        quality = [Quality() for _ in shown]
        for truth, *frames in zip(islice(read_frames(clip), 0, None, every), *shown, strict=False):
            for q, rgb in zip(quality, frames, strict=True):
                q.add(rgb, truth.rgb, player)
        for q in quality:
            q.summary()

    jobs = {"once": lambda: evaluate(player.bundle.path, clip, every=every), "each": each}
    seconds = time_in_turns(jobs, 3, warm_up=False, clock=time.process_time)
    return {name: median(taken) for name, taken in seconds.items()} | {"once / each": ratio(seconds, "once", "each")}


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = common_parser(__doc__, "stdo_batches", threads=True)
    options.add_argument("--clip", default="bikes.mp4")
    options.add_argument("--chunks", nargs="+", type=int, default=[2, 4])
    options.add_argument("--every", nargs="+", type=int, default=[10], help="frames that are evaluated")
    options.add_argument("--features", type=int, default=16)
    options.add_argument("--blocks", type=int, default=2)
    options.add_argument("--frames", type=int, default=10)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--folder", type=Path, default=CLIPS.parent / "stdo_speed", help="where bundles are kept")
    return options


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    record_run(arguments.output)
    results = Rows(arguments.output / "results.json", arguments, ("features", "blocks", "frames", "rounds", "threads"))
    clip = fetch(arguments.clip)
    for k in arguments.chunks:
        if (key := f"play, k = {k} / {arguments.clip}") not in results.rows:
            results.add(key, playing(clip, k, arguments))
    for every in arguments.every:
        if (key := f"evaluate every {every}th frame / {arguments.clip}") not in results.rows:
            results.add(key, measuring(clip, every, arguments))
    rows = [
        [
            *key.split(" / "),
            name,
            f"{seconds * 1e3:.1f}",
            f"{row[over]:.2f}" if (over := f"{name} / {base}") in row else "",
        ]
        for key, row in results.rows.items()
        for base in ("bare", "each")
        if base in row
        for name, seconds in row.items()
        if name in ("bare", "boxes", "batch", "once", "each")
    ]
    write_table(arguments.output / "table.md", markdown(["", "clip", "way", "CPU ms", "over bare or each"], rows))


if __name__ == "__main__":
    main()
