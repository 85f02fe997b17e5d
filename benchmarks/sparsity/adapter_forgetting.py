"""What an encoder forgets while adapters train: `python -m benchmarks.sparsity.adapter_forgetting`.

MiniLM-L6 finds texts like a text by the cosine of their mean states. It is trained on one task of `sparse_adapters.py`,
by the adapters that have learning rates there for every task (run it first), at these rates, or whole (the top layer,
all 1.8M weights; of four rates the one with the lowest loss on held-back texts). Then, with the adapter in place, texts
of the two other tasks get the class of most of their five nearest neighbours: what is lost of that accuracy, as a mean
of both, is forgotten. A large rate forgets more, so every method is also trained at a share of its rate (`--shares`).

Each run is written when it ends and not done again. Intervals are of seeds.
"""

import argparse
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.options import RESULTS, at_least_one, common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown, mean_and_deviation, mean_and_interval
from benchmarks.models.minilm_top import MiniLMTop, through
from benchmarks.sparsity.sparse_adapters import BUDGETS, HEAD_RATE, METHODS, TASKS, best_of, load, prepare, train

KNOWN, ASKED, NEIGHBOURS = 600, 400, 5  # texts of another task: with a class, without; and how many give theirs
WHOLE = "all weights"
Runs = dict[str, dict[str, float]]


@torch.no_grad()
def embeddings(model: nn.Module, x: Tensor) -> Tensor:
    """(B, T, 1 + 384) -> (B, 384): mean state of the tokens of each text, of length 1."""
    rows = []
    for part in x.split(200):
        for layer in model.layers:  # type: ignore[union-attr]
            part = through(layer, part)
        there, hidden = part[..., :1], part[..., 1:]
        rows.append((hidden * there).sum(1) / there.sum(1))
    return F.normalize(torch.cat(rows), dim=1)


def neighbours_right(model: nn.Module, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Percent of texts whose class most of their nearest neighbours have."""
    x, y, x_asked, y_asked = data
    near = (embeddings(model, x_asked[:ASKED]) @ embeddings(model, x[:KNOWN]).T).topk(NEIGHBOURS).indices
    answers = y[:KNOWN][near].mode(1).values
    return 100 * float((answers == y_asked[:ASKED]).float().mean())


def prepare_whole(classes: int, rate: float, seed: int) -> tuple[nn.Module, torch.optim.Adam]:
    """The network without an adapter."""
    torch.manual_seed(seed)
    model = MiniLMTop(classes, 1)
    groups: list[dict[str, Any]] = [{"params": model.layers.parameters(), "lr": rate}]
    return model.train(), torch.optim.Adam([*groups, {"params": model.head.parameters()}], HEAD_RATE)


def trained(data: Any, task: str, method: str, budget: float, rate: float, seed: int) -> nn.Module:
    """A network that has learned a task, in evaluation mode."""
    classes = TASKS[task]
    made = prepare_whole(classes, rate, seed) if method == WHOLE else prepare(classes, method, budget, rate, seed)
    train(*made, data[0], data[1], seed)
    return made[0].eval()


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Of the new task."""
    return torch.cat([model(part) for part in x.split(200)])


def whole_rate(data: Any, task: str) -> dict[str, float]:
    """Rate -> loss on held-back texts, of training all weights."""
    found = {}
    for rate in (2.5e-4, 5e-4, 1e-3, 2e-3):
        answers = logits(trained(data, task, WHOLE, 0.0, rate, 0), data[2])
        found[str(rate)] = float(F.cross_entropy(answers, data[3]))
    return found


def run(data: dict[str, Any], task: str, method: str, budget: float, rate: float, seed: int) -> dict[str, float]:
    """Train once; accuracy of the new task, and what the neighbours say of the others."""
    model = trained(data[task][1], task, method, budget, rate, seed)
    right = logits(model, data[task][1][2]).argmax(1) == data[task][1][3]
    plain = model if method == WHOLE else model.get_base_model()  # type: ignore[operator]
    old = [neighbours_right(plain, data[other][1]) for other in TASKS if other != task]
    return {"new": 100 * float(right.float().mean()), "old": mean(old)}


def table(runs: Runs, untouched: dict[str, float]) -> str:
    """Means over tasks, a row a method and share of its rate; intervals of seeds."""
    rows = []
    cells = dict.fromkeys(tuple(key.split("|")[1:4]) for key in runs)
    for method, budget, share in sorted(cells, key=lambda c: (c[1] == "0.0", c[1], -float(c[2]))):
        new, lost = points(runs, untouched, method, budget, share)
        named = budget + " %" if method != WHOLE else "100 %"
        rows.append([named, method, share, mean_and_deviation(new), mean_and_interval(lost)])
    head = ["trained", "method", "share of its rate", "new task", "forgotten"]
    before = ", ".join(f"{task} {accuracy:.1f}" for task, accuracy in untouched.items())
    return f"Neighbours of the untouched encoder, mean of the other tasks: {before}.\n\n{markdown(head, rows)}"


def points(
    runs: Runs, untouched: dict[str, float], method: str, budget: str, share: str
) -> tuple[list[float], list[float]]:
    """New accuracy and what is forgotten, in percent: a seed's mean over the tasks, of seeds that have all."""
    new, lost = [], []
    for seed in range(100):
        found = [runs.get(f"{task}|{method}|{budget}|{share}|{seed}") for task in TASKS]
        there = [r for r in found if r is not None]
        if len(there) == len(TASKS):
            new.append(mean(r["new"] for r in there))
            lost.append(mean(untouched[task] - r["old"] for task, r in zip(TASKS, there, strict=True)))
    return new, lost


def plot(runs: Runs, untouched: dict[str, float], budgets: list[float], path: Path) -> None:
    """What is forgotten over what is learned, a panel a budget; a line joins the shares of a method's rate."""
    figure, grid = plt.subplots(1, len(budgets), figsize=(4.5 * len(budgets), 4), layout="constrained", squeeze=False)
    shares = sorted({key.split("|")[3] for key in runs}, key=float)
    for budget, axes in zip(budgets, grid[0], strict=True):
        for method, at in [(method, str(budget)) for method in METHODS] + [(WHOLE, "0.0")]:
            found = [points(runs, untouched, method, at, share) for share in shares]
            there = [(mean(new), mean(lost)) for new, lost in found if new]
            if there:
                axes.plot(
                    *zip(*there, strict=True), marker="o", color="black" if method == "bidst" else None, label=method
                )
        axes.set(title=f"{budget} % trained", xlabel="accuracy of the new task, %", ylabel="forgotten, points")
        axes.legend(fontsize=8)
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "adapter_forgetting")
    made.add_argument("--rates", type=Path, default=RESULTS / "sparse_adapters" / "runs.json", help="the chosen rates")
    made.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.25], help="of the learning rate")
    made.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), choices=list(BUDGETS))
    made.add_argument("--seeds", type=at_least_one, default=5)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    path = arguments.output / "runs.json"
    stored: dict[str, Any] = read_json(path, {"untouched": {}, "rates": {}, "runs": {}})
    data = {task: load(task) for task in TASKS}
    chosen = read_json(arguments.rates, {})["rates"]
    for task in TASKS:
        if task not in stored["untouched"]:
            others = [neighbours_right(MiniLMTop(2, 1).eval(), data[other][1]) for other in TASKS if other != task]
            stored["untouched"][task] = mean(others)
            stored["rates"][f"{task}|{WHOLE}|0.0"] = whole_rate(data[task][0], task)
            write_json(path, stored)
    rated = [m for m in METHODS if all(f"{t}|{m}|{b}" in chosen for t, b in product(TASKS, arguments.budgets))]
    cells = [(method, budget) for budget in arguments.budgets for method in rated] + [(WHOLE, 0.0)]
    for share, seed, (method, budget), task in product(arguments.shares, range(arguments.seeds), cells, TASKS):
        key = f"{task}|{method}|{budget}|{share}|{seed}"
        if key not in stored["runs"]:
            rates = stored["rates"] if method == WHOLE else chosen
            rate = share * best_of(rates[f"{task}|{method}|{budget}"])
            stored["runs"][key] = run(data, task, method, budget, rate, seed)
            print(key, stored["runs"][key], flush=True)
            write_json(path, stored)
    plot(stored["runs"], stored["untouched"], list(BUDGETS), arguments.output / "forgetting.png")
    write_table(arguments.output / "table.md", table(stored["runs"], stored["untouched"]))


if __name__ == "__main__":
    main()
