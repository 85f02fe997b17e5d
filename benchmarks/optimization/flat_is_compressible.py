"""Do flat minima bear rounding, pruning and a second task? `python -m benchmarks.optimization.flat_is_compressible`

Pairs of tasks (`--pairs`): "words", an MLP over word counts, ten of the 20 newsgroups, then the other ten; "images", a
ViT, five classes of Fashion-MNIST, then the other five; "minilm", the top layer of a pretrained MiniLM-L6 on the first
16 tokens of posts, newsgroups as for "words"; "lora", "shira" and "bidst", the same by an adapter, half as long;
"dinov2", a head on a frozen DINOv2-S, the garments of "images"; "llama", a small one from scratch, the next word of
posts, then of news, by its loss; "tiny_vlm", the shipped decoder fine-tuned on scenes of a harder kind. Every method
trains the first task with AdamW for equally many steps; "longer" is plain training for twice as many, SAM's price, and
"SAM, half" SAM for half as many, the price of plain; ", merged" perturbs the merged weight of LoRA.
Then, untrained: rounding to 8, 4 and 3 bits, the smallest 50 to 90 % of the weights set to zero, the same by Wanda; and
the second task is learned by plain AdamW, after which the first is measured again, with the usual remedies beside it.

Every method has one dial with three values, plain ones their learning rate, the others rho at the pair's rate. It is
chosen for each measure by that very measure (mean of a group) on held-back training data, two seeds (LoRA: one); then
the test set is opened with other seeds. Much depends on the rate, so that some measures are also compared at the pair's
rate for all. SHiRA, BiDST, Llama and VLM have no tuning: rho is 0.1, the rate the pair's. Intervals are of the paired
differences to plain over the seeds. Runs are stored one by one.
"""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.harness.intervals import half_interval
from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import stored_runs, write_table
from benchmarks.harness.tables import gain, markdown, mean_and_deviation
from benchmarks.optimization.pairs import PAIRS
from benchmarks.optimization.sam_tasks import METHODS as OPTIMIZERS
from benchmarks.optimization.two_tasks import BITS, PRUNED, REMEDIES, measure, trainable

RHOS, RATES = (0.02, 0.1, 0.5), (1.0, 0.5, 2.0)
#: Row -> (optimizer, factor on the steps). ", merged" perturbs the merged weight of LoRA.
METHODS = {
    "plain": ("plain", 1.0), "longer": ("plain", 2.0), "sam": ("sam", 1.0), "sam, half": ("sam", 0.5),
    "s2sam": ("s2sam", 1.0), "guided zosam": ("guided_zosam", 1.0), "msam": ("msam", 1.0), "looksam": ("looksam", 1.0),
    "sam, merged": ("sam", 1.0), "s2sam, merged": ("s2sam", 1.0),
}  # fmt: skip
#: Group, for which the dial is chosen -> its measures.
GROUPS = {
    "whole": ("whole",),
    "rounded": tuple(f"{bits} bits" for bits in (*BITS, 2)),
    "pruned": tuple(f"{share:.0%} {how}" for how in ("smallest", "Wanda") for share in PRUNED),
    "fewer visual tokens": ("36 tokens", "9 tokens"),
    "remembered": ("first after second", "scenes known before"),
}
#: Group and measure that are also compared at the pair's rate for all.
AT_ONE_RATE = (
    ("whole", "whole"), ("rounded", "4 bits"), ("pruned", "80% Wanda"), ("remembered", "first after second"),
    ("remembered", "second"),
)  # fmt: skip
#: Group and measure of which also the change against the whole network is shown.
CHANGES = (("rounded", "3 bits"), ("rounded", "2 bits"), ("pruned", "90% Wanda"), ("remembered", "first after second"))
CHANGE = "change by "
FIRST_TUNING_SEED = 100
UNTUNED_RHO = 0.1


class Run(NamedTuple):
    """One training; a tuning run is judged on held-back data."""

    pair: str
    method: str
    dial: float
    seed: int
    tuning: bool

    @property
    def key(self) -> str:
        return "|".join(map(str, self))

    def done(self) -> dict[str, float]:
        """Train and measure."""
        length = METHODS[self.method][1]
        rho, rate = (0.0, self.dial) if is_plain(self.method) else (self.dial, 1.0)
        remedies = self.method == "plain" and not self.tuning
        return measure(PAIRS[self.pair], self.optimizer, rho, rate, length, self.seed, self.tuning, remedies)

    def optimizer(self, net: nn.Module, rho: float, rate: float) -> Any:
        """The method's, over AdamW."""
        more = {"merged": net} if "merged" in self.method else {}
        return OPTIMIZERS[METHODS[self.method][0]](trainable(net), torch.optim.AdamW, rho=rho, lr=rate, **more)


Runs = dict[str, dict[str, float]]


def tuning_seeds(pair: str) -> range:
    """Those that choose the dials of a pair."""
    return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + PAIRS[pair].tuning_seeds)


def dials(pair: str, method: str) -> tuple[float, ...]:
    """Values that are tried: of a pair without tuning seeds, the one that is taken."""
    if PAIRS[pair].tuning_seeds:
        return RATES if is_plain(method) else RHOS
    return RATES[:1] if is_plain(method) else (UNTUNED_RHO,)


def is_plain(method: str) -> bool:
    """Whether its dial is the learning rate."""
    return METHODS[method][0] == "plain"


def measures(runs: Runs, pair: str) -> dict[str, list[str]]:
    """Group -> its measures that the pair has."""
    there = {name for key, one in runs.items() if key.split("|")[0] == pair for name in one}
    found = {group: [name for name in names if name in there] for group, names in GROUPS.items()}
    return {group: names for group, names in found.items() if names}


def chosen(runs: Runs, pair: str, method: str, group: str) -> float:
    """The dial with the best mean of a group's measures on held-back data; KeyError where runs are missing."""

    def quality(dial: float) -> float:
        found = [runs[Run(pair, method, dial, seed, True).key] for seed in tuning_seeds(pair)]
        return mean(one[name] for one in found for name in measures(runs, pair)[group])

    first, *others = dials(pair, method)
    return max((first, *others), key=quality) if others else first


def work(runs: Runs, pairs: list[str], asked: list[str], seeds: int) -> Iterator[Run]:
    """All runs, a pair after the other: tuning, then seed by seed every dial that a group has chosen."""
    for pair in pairs:
        methods = [m for m in asked if PAIRS[pair].low_rank or "merged" not in m]
        yield from (
            Run(pair, m, dial, seed, True) for m in methods for dial in dials(pair, m) for seed in tuning_seeds(pair)
        )
        wanted = {m: {chosen(runs, pair, m, group) for group in measures(runs, pair) or GROUPS} for m in methods}
        wanted |= {m: wanted[m] | {RATES[0]} for m in methods if is_plain(m)}
        yield from (
            Run(pair, m, dial, seed, False) for seed in range(seeds) for m in methods for dial in sorted(wanted[m])
        )


def on_test(runs: Runs, pair: str, method: str, group: str, name: str, one_rate: bool = False) -> dict[int, float]:
    """Seed -> a measure on the test set, at the dial of its group; nothing where tuning is not done."""
    try:
        dial = RATES[0] if one_rate and is_plain(method) else chosen(runs, pair, method, group)
    except KeyError:
        return {}
    found = {seed: runs.get(Run(pair, method, dial, seed, False).key) for seed in range(100)}
    measure, start = name.removeprefix(CHANGE), "whole" if name.startswith(CHANGE) else ""
    return {seed: one[measure] - one.get(start, 0.0) for seed, one in found.items() if one and measure in one}


def gains(runs: Runs, pair: str, method: str, group: str, name: str, one_rate: bool = False) -> list[float]:
    """Points over plain, by seed; with one rate for all, or plain at its best."""
    ours, plain = (on_test(runs, pair, m, group, name, one_rate) for m in (method, "plain"))
    return [ours[seed] - plain[seed] for seed in ours if seed in plain]


def cell(runs: Runs, pair: str, method: str, group: str, name: str, one_rate: bool = False) -> str:
    """Plain: percent right and its deviation. Others: points over it, bold where the interval excludes 0."""
    if method == "plain":
        return mean_and_deviation(list(on_test(runs, pair, method, group, name, one_rate).values()))
    return gain(gains(runs, pair, method, group, name, one_rate))


def table(runs: Runs) -> str:
    """A table for each pair: rows measures, columns methods; then forgetting beside its remedies."""
    parts = []
    for pair in PAIRS:
        there = [m for m in METHODS if on_test(runs, pair, m, "whole", "whole")]
        if "plain" not in there:
            continue
        groups = measures(runs, pair)
        rows = [
            [f"{group}: {name}" if name != group else name, *(cell(runs, pair, m, group, name) for m in there)]
            for group, names in groups.items()
            for name in names
        ]
        rows.append(["second", *(cell(runs, pair, m, "remembered", "second") for m in there)])
        rows += [[CHANGE + name, *(cell(runs, pair, m, group, CHANGE + name) for m in there)] for group, name in CHANGES
                 if name in groups.get(group, [])]  # fmt: skip
        rows += [
            [f"{name}, one rate for all", *(cell(runs, pair, m, group, name, True) for m in there)]
            for group, name in AT_ONE_RATE
            if PAIRS[pair].tuning_seeds
        ]
        rows.append([f"dial: {', '.join(groups)}",
                     *(", ".join(f"{chosen(runs, pair, m, group):g}" for group in groups) for m in there)])  # fmt: skip
        rows = [row for row in rows if any(row[1:])]
        parts.append(f"**{pair}**\n\n{markdown(['measure, % right', *there], rows)}\n")
        if PAIRS[pair].second is None:
            continue
        rows = [
            [
                remedy,
                *(cell_of_remedy(runs, pair, f"{name}, {remedy}", name) for name in ("first after second", "second")),
            ]
            for remedy in REMEDIES
        ]
        parts.append(f"**{pair}, remedies on plain**\n\n{markdown(['remedy', 'first', 'second'], rows)}\n")
    return "\n".join(parts)


def cell_of_remedy(runs: Runs, pair: str, name: str, without: str) -> str:
    """Points over plain training of the second task."""
    ours, plain = (on_test(runs, pair, "plain", "remembered", key) for key in (name, without))
    values = [ours[seed] - plain[seed] for seed in ours]
    return f"{mean(values):+.2f} ± {half_interval(values):.2f}" if len(values) > 1 else ""


def plot(runs: Runs, path: Path) -> None:
    """Gain over plain: a row of panels for each pair, a panel for each group, a dot for each method."""
    others = list(METHODS)[1:]
    pairs = [pair for pair in PAIRS if any(len(gains(runs, pair, m, "whole", "whole")) > 1 for m in others)]
    if not pairs:
        return
    width = max(len(measures(runs, pair)) for pair in pairs)
    figure, grid = plt.subplots(
        len(pairs), width, figsize=(3 * width, 2.6 * len(pairs)), squeeze=False, layout="constrained"
    )
    for pair, axes in zip(pairs, grid, strict=True):
        for (group, names), axis in zip(measures(runs, pair).items(), axes, strict=False):
            found: dict[str, list[float]] = {}
            for method in others:
                points = [gains(runs, pair, method, group, name) for name in names]
                found[method] = [mean(seed) for seed in zip(*points, strict=True)]
            there = {m: values for m, values in found.items() if len(values) > 1}
            errors = [half_interval(values) for values in there.values()]
            axis.errorbar([mean(v) for v in there.values()], range(len(there)), xerr=errors, fmt="o", color="black")
            axis.axvline(0, color="grey", linewidth=1)
            axis.set_yticks(range(len(there)), list(there), fontsize=8)
            axis.invert_yaxis()
            axis.set_title(f"{pair}: {group}", fontsize=9)
    figure.supxlabel("points over plain training, mean of the group, 95 % interval", fontsize=9)
    save(figure, path, 130)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "flat_is_compressible")
    made.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    made.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    made.add_argument("--seeds", type=int, default=5)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    wanted = {"pairs": arguments.pairs, "asked": arguments.methods, "seeds": arguments.seeds}
    runs = stored_runs(arguments.output, functools.partial(work, **wanted), Run.done, 4)
    write_table(arguments.output / "table.md", table(runs))
    plot(runs, arguments.output / "gains.png")


if __name__ == "__main__":
    main()
