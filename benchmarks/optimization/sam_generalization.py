"""Does sharpness-aware training generalise better? `python -m benchmarks.optimization.sam_generalization`

Real data, small networks, paired seeds. For every setting and method rho is tuned on validation data (the same grid and
the same number of runs for each method), then `--seeds` new seeds are trained and tested. A seed fixes the training
subset, the label noise, the mask, the first weights and the order of the data, so that methods are compared in pairs.
Every run is stored as soon as it is done: the same command goes on where it was stopped. `--settings`, `--methods` and
`--seeds` narrow or widen the work; `--report` only writes table and plots of what is there.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.intervals import half_interval
from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.optimization.sam_tasks import MAIN, METHODS, SETTINGS, Setting, train_and_test

RHOS = (0.05, 0.2, 0.8)
#: ASAM measures in units of the weights, which makes its distances about ten times larger.
RHOS_OF = {"plain": (), "asam": (0.5, 2.0, 8.0)}
TUNING_SEEDS = (1000,)


@dataclass(frozen=True)
class Run:
    """One training. A tuning run is judged on validation data, the others on test data."""

    setting: str
    method: str
    rho: float
    seed: int
    tuning: bool

    @property
    def key(self) -> str:
        return "|".join(map(str, (self.setting, self.method, self.rho, self.seed, "tuning" if self.tuning else "test")))


class Store:
    """Results on disk: {key: {"run": ..., "accuracy": ..., ...}}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, Any] = read_json(path, {})

    def add(self, run: Run, result: dict[str, Any]) -> None:
        self.runs[run.key] = {"run": asdict(run), **result}
        write_json(self.path, self.runs)

    def best_rho(self, setting: str, method: str) -> float | None:
        """The rho of the highest mean validation accuracy, once all tuning runs are there."""
        if method == "plain":
            return 0.0
        means = []
        for rho in RHOS_OF.get(method, RHOS):
            found = [self.runs.get(Run(setting, method, rho, seed, True).key) for seed in TUNING_SEEDS]
            if any(f is None for f in found):
                return None
            means.append(np.mean([f["accuracy"] for f in found if f]))
        return RHOS_OF.get(method, RHOS)[int(np.argmax(means))]


def work(store: Store, settings: list[str], methods: list[str], seeds: int) -> Iterator[Run]:
    """Runs still to be done: a setting after the other; in it, tuning first, then seed by seed."""
    for setting in settings:
        for method in methods:
            for seed in TUNING_SEEDS:
                for rho in RHOS_OF.get(method, RHOS):
                    yield Run(setting, method, rho, seed, True)
        for seed in range(seeds):
            for method in methods:
                best = store.best_rho(setting, method)
                assert best is not None
                yield Run(setting, method, best, seed, False)


def summary(store: Store) -> list[dict[str, Any]]:
    """A row per setting and method: means, intervals, and the paired difference to plain training."""
    rows = []
    for name in SETTINGS:
        tests = [r for r in store.runs.values() if r["run"]["setting"] == name and not r["run"]["tuning"]]
        plain = {r["run"]["seed"]: r for r in tests if r["run"]["method"] == "plain"}
        for method in METHODS:
            rho = store.best_rho(name, method)
            mine = {r["run"]["seed"]: r for r in tests if r["run"]["method"] == method and r["run"]["rho"] == rho}
            if not mine:
                continue
            both = sorted(set(mine) & set(plain))
            row = {"setting": name, "method": method, "rho": rho, "seeds": len(mine)}
            for measure in ("accuracy", "corrupted", "train_accuracy", "sharpness"):
                values = np.array([r[measure] for r in mine.values() if measure in r])
                if len(values):
                    row[measure], row[f"{measure}_interval"] = float(values.mean()), half_interval(values.tolist())
                gaps = np.array([mine[s][measure] - plain[s][measure] for s in both if measure in mine[s]])
                if len(gaps) and method != "plain":
                    row[f"{measure}_gain"], row[f"{measure}_gain_interval"] = (
                        float(gaps.mean()),
                        half_interval(gaps.tolist()),
                    )
            row["seconds"] = float(np.median([r["seconds"] for r in mine.values()]))
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ["setting", "method", "rho", "seeds", "accuracy %", "gain (95 % interval)", "corrupted %", "gain"]
    cells = []
    for row in rows:

        def number(name: str, sign: str = "") -> str:
            if name not in row:
                return ""
            return f"{100 * row[name]:{sign}.2f} ± {100 * row[name + '_interval']:.2f}"

        sure = "**" if abs(row.get("accuracy_gain", 0)) > row.get("accuracy_gain_interval", math.inf) else ""
        gain = f"{sure}{number('accuracy_gain', '+')}{sure}" if "accuracy_gain" in row else ""
        cells.append([row["setting"], row["method"], f"{row['rho']:g}", row["seeds"], number("accuracy"), gain,
                      number("corrupted"), number("corrupted_gain", "+")])  # fmt: skip
    return markdown(head, cells)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Gain over plain training, a panel per setting."""
    names = list(dict.fromkeys(row["setting"] for row in rows if "accuracy_gain" in row))
    if not names:
        return
    columns = min(4, len(names))
    height = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(3.2 * columns, 2.6 * height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        mine = [row for row in rows if row["setting"] == name and "accuracy_gain" in row]
        gains = [100 * row["accuracy_gain"] for row in mine]
        errors = [100 * row["accuracy_gain_interval"] for row in mine]
        axis.errorbar(gains, range(len(mine)), xerr=errors, fmt="o", color="black", capsize=3)
        axis.axvline(0, color="grey", linewidth=1)
        axis.set_yticks(range(len(mine)), [row["method"] for row in mine], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(name, fontsize=9)
    figure.supxlabel("gain in test accuracy over plain training, points, 95 % interval", fontsize=9)
    save(figure, path, 130)


def report(store: Store) -> None:
    """Write summary, table and plot of what is there."""
    rows, folder = summary(store), store.path.parent
    write_json(folder / "summary.json", rows)
    plot(rows, folder / "gain.png")
    write_table(folder / "table.md", table(rows))


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "sam_generalization")
    made.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    made.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(MAIN))
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--report", action="store_true", help="train nothing")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    store = Store(arguments.output / "runs.json")
    if not arguments.report:
        record_run(arguments.output)
    for run in () if arguments.report else work(store, arguments.settings, arguments.methods, arguments.seeds):
        if run.key in store.runs:
            continue
        start = time.perf_counter()
        setting: Setting = SETTINGS[run.setting]
        result = train_and_test(setting, METHODS[run.method], run.rho, run.seed, run.tuning)
        store.add(run, {**result, "seconds": round(time.perf_counter() - start, 2)})
        print(run.key, {k: round(v, 4) for k, v in result.items()}, flush=True)
    report(store)


if __name__ == "__main__":
    main()
