"""What a kilobyte of a network is worth: `python -m benchmarks.video.delta`.

One AV1 stream at half the size for each clip; on it, at equal steps and on the same patches: all weights of a network
on luma, trained from scratch and from the general one (16 bits and 8 bits), scales and biases alone, deltas trained for
their rate at several prices of a bit, and others' ways to send a change (`delta_schemes.py`). Bytes are those of the
network alone. PSNR of luma on whole frames, errors pooled over every N-th; the gain is over bicubic enlargement of the
same stream. Of several seeds the mean, and the least and the largest gain. Resumable: each row is written when it is
done.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.delta_bench import PRICE, Bench, Bicubic
from benchmarks.video.delta_schemes import Sent, cafm, cafm_of_general, emt, low_rank, sparse, srvc
from benchmarks.video.rate import CLIPS

Train = Callable[[Bench], Sent | dict[str, Sent]]


def _low_rank(bench: Bench, rank: int) -> Sent:
    return low_rank(bench.fit.general.load(), rank, bench.store, bench.recipe(), bench.folder, bench.penalty(PRICE))


def _sparse(bench: Bench, share: float) -> Sent:
    return sparse(bench.fit.general.load(), share, bench.store, bench.recipe(), bench.folder)


def _srvc(bench: Bench, share: float, count: int) -> Sent:
    return srvc(bench.fit.general.load, share, bench.stores(count), bench.recipe(), bench.folder)


def _emt(bench: Bench, shares: Sequence[float]) -> Sent:
    return emt(bench.fit.general.load, shares, bench.stores(len(shares)), bench.recipe(), bench.folder)


def _cafm_of_general(bench: Bench, count: int) -> Sent:
    return cafm_of_general(bench.fit.general.load(), bench.stores(count), bench.recipe(False), bench.folder)


def _cafm(bench: Bench, count: int) -> Sent:
    return cafm(bench.fit.general.load, bench.stores(count), bench.recipe(), bench.folder)


#: What is sent of a network -> how it is trained. Of 1.6 % (SRVC), 2.2 % and 1 % (EMT, which itself sends 20 % and 1 %)
#: and eight stretches (CaFM) the bytes are about those of a delta at the price of a fit.
KINDS: dict[str, Train] = {
    "all weights, int8, from scratch": lambda bench: bench.whole("scratch"),
    "all weights, int8, from general": lambda bench: bench.whole("general"),
    "scales and biases": lambda bench: bench.delta(PRICE, weights=False),
    "delta, price 1": lambda bench: bench.delta(1),
    f"delta, price {PRICE}": lambda bench: bench.delta(PRICE),
    "delta, price 16": lambda bench: bench.delta(16),
    f"delta, price {PRICE}, EMT's patches": Bench.hardest_last,
    "low rank, 1": partial(_low_rank, rank=1),
    "low rank, 2": partial(_low_rank, rank=2),
    "few weights, 5 %": partial(_sparse, share=0.05),
    "few weights, 20 %": partial(_sparse, share=0.2),
    "SRVC, two stretches, 1.6 %": partial(_srvc, share=0.016, count=2),
    "SRVC, two stretches, 5 %": partial(_srvc, share=0.05, count=2),
    "EMT, two stretches, 20 % and 1 %": partial(_emt, shares=(0.2, 0.01)),
    "EMT, two stretches, 2.2 % and 1 %": partial(_emt, shares=(0.022, 0.01)),
    "CaFM, two stretches, general body": partial(_cafm_of_general, count=2),
    "CaFM, eight stretches, general body": partial(_cafm_of_general, count=8),
    "CaFM, two stretches, all weights": partial(_cafm, count=2),
}


def measure(clip: str, steps: int, seed: int, results: Rows, arguments: argparse.Namespace, bar: Any) -> None:
    """All rows of a clip, length and seed that are not there yet."""
    with tempfile.TemporaryDirectory() as name:
        bench: Bench | None = None
        for kind in arguments.kinds:
            if f"{clip} / {kind} / {steps} / {seed}" not in results.rows:
                bench = bench or Bench(clip, Path(name), seed, arguments)
                if f"{clip} / bicubic" not in results.rows:
                    plain = {"bytes": 0, "stream": bench.stream}
                    results.add(f"{clip} / bicubic", plain | {"psnr": bench.quality([Bicubic()])})
                    results.add(f"{clip} / general", plain | {"psnr": bench.quality([bench.fit.general.load()])})
                for row, found in bench.run(kind, KINDS[kind], steps).items():
                    results.add(f"{clip} / {row} / {steps} / {seed}", found)
            bar.update()


Group = tuple[str, str, int]


def grouped(results: Rows) -> dict[Group, list[dict[str, Any]]]:
    """(clip, what is sent, steps) -> its seeds; in the order of the table."""
    found: dict[Group, list[dict[str, Any]]] = {}
    for key, row in results.rows.items():
        clip, kind, *rest = key.split(" / ")
        found.setdefault((clip, kind, int(rest[0]) if rest else 0), []).append(row)
    order = ["bicubic", "general", *(k.replace("int8", d) for k in KINDS for d in ("float16", "int8"))]
    clips = list(dict.fromkeys(clip for clip, *_ in found))
    return dict(sorted(found.items(), key=lambda item: (clips.index(item[0][0]), item[0][2], order.index(item[0][1]))))


def write(results: Rows, output: Path) -> None:
    """Table and plot."""
    rows, anchors = [], {k: row for k, row in results.rows.items() if k.count(" / ") == 1}
    for (clip, kind, steps), seeds in grouped(results).items():
        bicubic, general = (anchors[f"{clip} / {name}"] for name in ("bicubic", "general"))
        size, quality = mean(row["bytes"] for row in seeds), mean(row["psnr"] for row in seeds)
        gains = [row["psnr"] - general["psnr"] for row in seeds]
        spent = [row["seconds"] / 60 for row in seeds if "seconds" in row]
        rows.append(
            [clip, kind, steps or "", f"{mean(spent):.1f}" if spent else "", f"{size:,.0f}",
             f"{size / bicubic['stream']:.1%}", f"{quality:.2f}", f"{quality - bicubic['psnr']:+.2f}",
             f"{mean(gains):+.2f}", f"{len(gains)}" if steps else "",
             f"{min(gains):+.2f} to {max(gains):+.2f}" if len(gains) > 1 else "",
             f"{mean(gains) / size * 1024:+.3f}" if size else ""]
        )  # fmt: skip
    head = ["clip", "sent of the network", "steps", "CPU minutes", "bytes", "of the stream", "luma, dB", "over bicubic",
            "over the general one", "seeds", "from to", "dB a kilobyte over the general one"]  # fmt: skip
    write_table(output / "table.md", markdown(head, rows))
    plot(results, output)


def plot(results: Rows, output: Path) -> None:
    """dB over the general network against bytes, a panel for each clip; lines join lengths of training."""
    groups = {key: seeds for key, seeds in grouped(results).items() if key[2]}
    clips, kinds = (list(dict.fromkeys(key[n] for key in groups)) for n in (0, 1))
    looks = {kind: {"color": f"C{n % 10}", "marker": "osv^Dx"[n // 10]} for n, kind in enumerate(kinds)}
    figure, grid = plt.subplots(1, len(clips), figsize=(3 + 5 * len(clips), 5), layout="constrained", squeeze=False)
    handles = {}
    for clip, axes in zip(clips, grid[0], strict=True):
        general = results.rows[f"{clip} / general"]["psnr"]
        for kind in dict.fromkeys(kind for of, kind, _ in groups if of == clip):
            points = [
                (mean(row["bytes"] for row in seeds), mean(row["psnr"] for row in seeds) - general)
                for (of, name, _), seeds in groups.items() if (of, name) == (clip, kind)
            ]  # fmt: skip
            handles[kind] = axes.plot(*zip(*points, strict=True), **looks[kind])[0]
        axes.set(title=clip, xscale="log", xlabel="bytes of the network", ylabel="luma, dB over the general network")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)
    save(figure, output / "delta.png")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "delta", threads=True)
    made.add_argument("--clips", nargs="+", default=["bikes.mp4", "sports2d.mp4"], choices=list(CLIPS))
    made.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    made.add_argument("--quality", type=int, default=50, help="crf of the stream")
    made.add_argument("--steps", nargs="+", type=int, default=[600], help="600 are about a minute of a CPU")
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--seeds", nargs="+", type=int, default=[0], help="of patches and batches")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    results = Rows(arguments.output / "results.json", arguments, ("quality", "batch_size"))
    record_run(arguments.output)
    runs: Sequence[tuple[str, int, int]] = [
        (clip, steps, seed) for clip in arguments.clips for steps in arguments.steps for seed in arguments.seeds
    ]
    with tqdm(total=len(arguments.kinds) * len(runs), unit="training") as bar:
        for run in runs:
            measure(*run, results, arguments, bar)
            write(results, arguments.output)


if __name__ == "__main__":
    main()
