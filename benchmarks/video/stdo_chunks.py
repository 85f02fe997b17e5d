"""From which length of training on several networks pay, and what k="auto" chooses.

`python -m benchmarks.video.stdo_chunks`

STDO with k networks of one size, at equal steps of training in all: k times the bytes, and for k > 1 half of the steps
train the common start. The low-resolution stream is lossless, so that the networks alone differ. Resumable: each row is
written when it is done.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.fetch_clips import fetch
from benchmarks.video.stdo_prepared import Prepared
from hf_efficient.video.encode.fit import Fit
from hf_efficient.video.methods.stdo import choose_num_chunks
from hf_efficient.video.settings import AUTO, FitSettings


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "stdo_chunks", threads=True)
    made.add_argument("--clips", nargs="+", default=["carphone_pristine.mp4"])
    made.add_argument("--chunks", nargs="+", default=["1", "2", "4", AUTO])
    made.add_argument("--steps", nargs="+", type=int, default=[500, 2000, 6000])
    made.add_argument("--scale", type=int, default=2)
    made.add_argument("--features", type=int, default=8)
    made.add_argument("--batch-size", type=int, default=4)
    made.add_argument("--max-patches", type=int, default=4096)
    made.add_argument("--every", type=int, default=5, help="measure on every N-th frame")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)

    names = ("scale", "features", "batch_size", "max_patches", "every")
    results = Rows(arguments.output / "results.json", arguments, names)
    record_run(arguments.output)
    for clip in arguments.clips:
        measure(clip, results, arguments)
    text = table(results)
    write_table(arguments.output / "table.md", text)


def measure(clip: str, results: Rows, arguments: argparse.Namespace) -> None:
    """All rows of one clip that are not there yet."""
    rows = [(steps, k) for steps in arguments.steps for k in arguments.chunks]
    missing = [(steps, k) for steps, k in rows if f"{clip} / {steps} / {k}" not in results.rows]
    if not missing:
        return
    settings = FitSettings(
        method="stdo", scale=arguments.scale, num_features=arguments.features, batch_size=arguments.batch_size,
        max_patches=arguments.max_patches, lr_quality=0,
    )  # fmt: skip
    kinds: dict[str, tuple[type[Fit], dict[str, Any]]]
    kinds = {name_of(steps, k): (Fit, {"method": "stdo", "num_chunks": k, "steps": steps}) for steps, k in missing}
    with tempfile.TemporaryDirectory() as folder:
        prepared = Prepared(fetch(clip), settings, kinds, Path(folder), arguments.every)
        errors = prepared.base.plan.errors.ravel()
        for steps, k in missing:
            auto = choose_num_chunks(errors, steps)
            same = results.rows.get(f"{clip} / {steps} / {auto}") if k == AUTO else None  # the very same run
            row = same or prepared.run(name_of(steps, k), Fit, replace(settings, num_chunks=k, steps=steps))
            results.add(f"{clip} / {steps} / {k}", {**row, "k": auto if k == AUTO else int(k)})


def name_of(steps: int, k: str) -> str:
    """What patches go by: those of k networks are the same in each length of training, those of "auto" are not."""
    return f"{k}, {steps}" if k == AUTO else k


def table(results: Rows) -> str:
    """A line for each length: PSNR by number of networks, and what "auto" is behind the best of them."""
    psnr: dict[tuple[str, str], dict[str, float]] = {}
    chosen: dict[tuple[str, str], int] = {}
    for key, row in results.rows.items():
        clip, steps, k = key.split(" / ")
        psnr.setdefault((clip, steps), {})[k] = row["psnr"]
        if k == AUTO:
            chosen[clip, steps] = row["k"]
    numbers = sorted({k for line in psnr.values() for k in line})
    rows = [
        [clip, steps, *(f"{line[k]:.2f}" if k in line else "" for k in numbers), chosen.get((clip, steps), ""),
         f"{line[AUTO] - max(line.values()):+.2f}" if AUTO in line else ""]
        for (clip, steps), line in psnr.items()
    ]  # fmt: skip
    return markdown(["clip", "steps", *(f"k = {k}" for k in numbers), "auto is", "behind the best, dB"], rows)


if __name__ == "__main__":
    main()
