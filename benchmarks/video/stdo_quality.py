"""STDO against its peers at equal bytes and at equal training: `python -m benchmarks.video.stdo_quality`.

One network for all patches (awDNN), one for each stretch of time (NAS), CaFM modulation, EMT-style training, STDO with
k networks of equal-count and equal-error chunks, JSTDO. Every comparison has the same number of training steps in all.
"steps": all networks have one size, so k of them cost k times the bytes. "bytes": the k networks together have at most
the bytes of the one. The low-resolution stream is lossless, so that the networks alone differ. Resumable: each row is
written when it is done.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.fetch_clips import fetch
from benchmarks.video.stdo_baselines import EMT, CaFM, cafm_bytes
from benchmarks.video.stdo_prepared import Prepared
from hf_efficient.video.encode.fit import Fit
from hf_efficient.video.networks.backbones.wdsr import WDSR
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.networks.weights import stored_bytes
from hf_efficient.video.settings import FitSettings

METHODS: dict[str, tuple[type[Fit], dict[str, Any]]] = {
    "awDNN": (Fit, {"method": "single"}),
    "NAS, k = 2": (Fit, {"method": "time", "num_chunks": 2}),
    "CaFM, k = 2": (CaFM, {"method": "time", "num_chunks": 2}),
    "EMT": (EMT, {"method": "single"}),
    "STDO, k = 2": (Fit, {"method": "stdo", "num_chunks": 2}),
    "STDO, k = 4": (Fit, {"method": "stdo", "num_chunks": 4}),
    "STDO, k = 6": (Fit, {"method": "stdo", "num_chunks": 6}),
    "STDO, k = 2, equal error": (Fit, {"method": "stdo", "num_chunks": 2, "edges": "error"}),
    "JSTDO": (Fit, {"method": "jstdo"}),
}


def networks_of(name: str) -> int:
    """Networks whose bytes a method pays for."""
    kind, choice = METHODS[name]
    return 1 if choice["method"] in ("single", "jstdo") or kind is CaFM else choice["num_chunks"]


def narrowed(backbone: str, scale: int, features: int, blocks: int, k: int) -> int:
    """The widest network of which k have at most the bytes of one of the given width."""

    def size(width: int) -> int:
        return stored_bytes(NetworkSpec(backbone, scale, width, blocks).build(), "float16")

    return max((w for w in range(1, features + 1) if k * size(w) <= size(features)), default=1)


def settings_of(scale: int, backbone: str, name: str, equal: str, arguments: argparse.Namespace) -> FitSettings:
    """What a row trains."""
    _, choice = METHODS[name]
    width = arguments.features
    if equal == "bytes":
        width = narrowed(backbone, scale, width, arguments.blocks, networks_of(name))
    return FitSettings(
        scale=scale, backbone=backbone, num_features=width, num_blocks=arguments.blocks, steps=arguments.steps,
        batch_size=arguments.batch_size, lr_quality=0, max_patches=arguments.max_patches, seed=arguments.seed, **choice,
    )  # fmt: skip


def run(prepared: Prepared, name: str, settings: FitSettings) -> dict[str, Any]:
    """Fit one bundle and measure it."""
    kind, choice = METHODS[name]
    result: dict[str, Any] = prepared.run(name, kind, settings)
    net = settings.network(0).build()
    size = networks_of(name) * stored_bytes(net, settings.weight_dtype)
    if kind is CaFM and isinstance(net, WDSR):
        size = cafm_bytes(size, net, choice["num_chunks"])
    return {**result, "network_bytes": size, "width": settings.num_features}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "stdo_quality", threads=True)
    made.add_argument("--clips", nargs="+", default=["bikes.mp4", "sports2d.mp4", "vtest.avi", "cityCC0.mpg"])
    made.add_argument("--scales", nargs="+", type=int, default=[4, 2, 3])
    made.add_argument("--backbones", nargs="+", default=["wdsr", "espcn"])
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    made.add_argument("--equal", nargs="+", default=["steps", "bytes"], choices=["steps", "bytes"])
    made.add_argument("--features", type=int, default=16)
    made.add_argument("--blocks", type=int, default=2)
    made.add_argument("--steps", type=int, default=3000)
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--max-patches", type=int, default=4096)
    made.add_argument("--every", type=int, default=5, help="measure on every N-th frame")
    made.add_argument("--seed", type=int, default=0)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)

    names = ("features", "blocks", "steps", "batch_size", "max_patches", "every", "seed")
    results = Rows(arguments.output / "results.json", arguments, names)
    record_run(arguments.output)
    groups = [(c, s, b) for b in arguments.backbones for s in arguments.scales for c in arguments.clips]
    with tqdm(total=len(groups) * len(arguments.methods) * len(arguments.equal), unit="bundle") as bar:
        for group in groups:
            measure(*group, results, arguments, bar)
    report(results, arguments.output)


def measure(clip: str, scale: int, backbone: str, results: Rows, arguments: argparse.Namespace, bar: Any) -> None:
    """All rows of one clip, scale and backbone that are not there yet."""
    prefix = f"{clip} / {scale} / {backbone}"
    methods = [name for name in arguments.methods if backbone == "wdsr" or METHODS[name][0] is not CaFM]
    rows = [(name, equal) for name in methods for equal in arguments.equal]
    missing = [(name, equal) for name, equal in rows if f"{prefix} / {name} / {equal}" not in results.rows]
    bar.update(len(arguments.methods) * len(arguments.equal) - len(missing))
    kinds = {name: METHODS[name] for name, _ in missing}
    prepared: Prepared | None = None
    with tempfile.TemporaryDirectory() as folder:
        for name, equal in missing:
            key, other = f"{prefix} / {name} / {equal}", f"{prefix} / {name} / steps"
            if equal == "bytes" and networks_of(name) == 1 and other in results.rows:
                results.add(key, results.rows[other])  # the very same run
            else:
                settings = settings_of(scale, backbone, name, equal, arguments)
                prepared = prepared or Prepared(fetch(clip), settings, kinds, Path(folder), arguments.every)
                results.add(key, run(prepared, name, settings))
            bar.update()


def report(results: Rows, output: Path) -> None:
    """Table and plot of all rows there are."""
    names = list(METHODS)
    ordered = sorted(results.rows.items(), key=lambda item: ((k := item[0].split(" / "))[:3], names.index(k[3])))
    rows = [
        [*key.split(" / "), row["width"], f"{row['network_bytes']:,}", f"{row['psnr']:.2f}", f"{row['psnr_paper']:.2f}",
         f"{row['psnr'] - row['bicubic']:+.2f}"]
        for key, row in ordered
    ]  # fmt: skip
    head = ["clip", "scale", "backbone", "method", "equal", "width", "network bytes", "PSNR, whole frames",
            "paper's metric", "over bicubic"]  # fmt: skip
    groups: dict[str, dict[str, float]] = {}
    for key, row in ordered:
        clip, scale, backbone, name, equal = key.split(" / ")
        groups.setdefault(f"{clip} x{scale} {backbone}, equal {equal}", {})[name] = row["psnr"] - row["bicubic"]
    figure, axes = plt.subplots(len(groups), 1, figsize=(8, 1 + 2.6 * len(groups)), squeeze=False, layout="constrained")
    for ax, (title, bars) in zip(axes[:, 0], groups.items(), strict=True):
        ax.barh(list(bars), list(bars.values()), color=["tab:red" if "STDO" in n else "tab:gray" for n in bars])
        ax.set(title=title, xlabel="PSNR of whole frames over bicubic, dB")
        ax.invert_yaxis()
    save(figure, output / "gain.png")
    write_table(output / "table.md", markdown(head, rows))


if __name__ == "__main__":
    main()
