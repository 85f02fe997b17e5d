"""Pretrained networks made sparse while they learn a new task: `python -m benchmarks.sparsity.sparse_finetuning`.

Tasks (`--tasks`): "moved", an MLP over word counts that has learned ten of the twenty newsgroups and learns the other
ten; and MiniLM-L6's top two layers (3.5 million weights; what the frozen layers below say of a text is computed once)
on the twenty newsgroups, on sentiment of film reviews, and on R52's topics. Methods: dense; one-shot pruning by
magnitude and by Wanda, then training with a fixed mask; gradual magnitude pruning (GMP); movement pruning, hard and
soft; SET, MEST, RigL and BiDST from the largest weights; RigL and BiDST that start dense and fall along GMP's curve;
the dense network and BiDST with S2-SAM.

Settings of every method (`GRID`, what it reads of it) are chosen one after the other on texts held back from training,
at 95 % sparsity, two seeds (`chosen.json`), but learning rate and share of weights exchanged together, for the larger
the steps, the fewer exchanges are borne; then the test set is opened, with other seeds. Steps, batches, Adam and the
cosine are the same for all. Every run is written when it ends and not done again. Intervals are of seeds, paired.
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn

from benchmarks.harness.plots import plot_panels
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown, mean_and_deviation, mean_and_interval
from benchmarks.sparsity.movement import MovementPruning
from benchmarks.sparsity.pretrained_tasks import TASKS, Task
from benchmarks.sparsity.tasks import Data, comparison_parser, held_back
from hf_efficient import S2SAM, BiDSTConfig, prune_wanda, train_sparsely

SPARSITIES = (0.9, 0.95)
CHOSEN_AT, CHOSEN_BY = 0.95, (100, 101)
STOP = 0.75  # share of training after which masks stand still, for all methods
#: Setting -> values tried ("lr": the task's); the first is what the others are chosen with.
GRID: dict[str, tuple[Any, ...]] = {
    "drop_fraction": (0.3, 0.1),
    "distribution": ("uniform", "erk"),
    "grow_from": ("zero", "start"),
    "levelling": (0.0, 0.5, 1.0),
    "score_interval": (5, 1),
    "score_lr": (1e-2, 1e-3, 1e-1),
    "penalty": (10.0, 1.0, 100.0),
    "rho": (0.05, 0.02, 0.1, 0.2),
}
BOTH = ("lr", "drop_fraction")
#: Method -> what is fixed of it, and the settings that are chosen; those of a tuple together.
METHODS: dict[str, tuple[dict[str, Any], tuple[str | tuple[str, ...], ...]]] = {
    "dense": ({}, ("lr",)),
    "magnitude": ({"topology": "static"}, ("lr", "distribution")),
    "wanda": ({"topology": "static"}, ("lr",)),
    "set": ({"topology": "set"}, (BOTH, "distribution", "grow_from")),
    "mest": ({"topology": "mest"}, (BOTH, "distribution", "grow_from")),
    "rigl": ({"topology": "rigl"}, (BOTH, "distribution", "grow_from", "levelling")),
    "bidst": ({"topology": "bidst"}, (BOTH, "distribution", "levelling", "score_interval")),
    "gmp": ({"topology": "gmp"}, ("lr", "distribution")),
    "movement": ({"soft": False}, ("lr", "score_lr")),
    "soft movement": ({"soft": True}, ("lr", "score_lr", "penalty")),
    "rigl, dense first": (
        {"topology": "rigl", "initial_sparsity": 0.0},
        (BOTH, "distribution", "grow_from", "levelling"),
    ),
    "bidst, dense first": (
        {"topology": "bidst", "initial_sparsity": 0.0},
        (BOTH, "distribution", "levelling", "score_interval"),
    ),
    "dense, S2-SAM": ({}, ("lr", "rho")),
    "bidst, S2-SAM": ({"topology": "bidst"}, (BOTH, "distribution", "levelling", "score_interval", "rho")),
}
Runs = dict[str, dict[str, float]]


def sparse_layers(network: nn.Module, task: Task) -> dict[str, nn.Linear]:
    """Names of the layers that become sparse, as `target_modules` matches them."""
    found = {name: m for name, m in network.named_modules() if re.fullmatch(task.layers, name)}
    return {name: m for name, m in found.items() if isinstance(m, nn.Linear)}


def made_sparse(
    network: nn.Module, task: Task, method: str, sparsity: float, settings: dict[str, Any], seed: int
) -> nn.Module:
    """The network with a mask that the package's engine, or nobody, moves."""
    fixed, _ = METHODS[method]
    shared: dict[str, Any] = {"target_modules": task.layers, "backend": "dense", "seed": seed}
    if fixed["topology"] != "static":
        shared |= {"update_interval": task.interval, "stop_fraction": STOP}
    if method.startswith("wanda"):
        return get_peft_model(network, BiDSTConfig(**fixed, **shared, distribution="as_pruned"))
    chosen = {name: value for name, value in settings.items() if name not in ("lr", "rho")}
    amount: dict[str, Any] = {} if "pattern" in fixed else {"sparsity": sparsity}
    return get_peft_model(network, BiDSTConfig(**amount, **fixed, **shared, **chosen))


def run(task: Task, data: Data, method: str, sparsity: float, settings: dict[str, Any], seed: int) -> dict[str, float]:
    """Train once; accuracy in percent, and the sparsity that was reached."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    network = task.network()
    fixed, _ = METHODS[method]
    peer: MovementPruning | None = None
    groups = [{"params": [], "lr": settings["lr"]}]
    if method.startswith("wanda"):
        calibration = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:128]]
        amount: dict[str, Any] = {"pattern": fixed["pattern"]} if "pattern" in fixed else {"sparsity": sparsity}
        prune_wanda(network, [calibration], **amount, target_modules=list(sparse_layers(network, task)))
    if "soft" in fixed:
        layers = sparse_layers(network, task).values()
        peer = MovementPruning(layers, sparsity, int(STOP * task.steps), fixed["soft"], settings.get("penalty", 0.0))
        groups.append({"params": peer.parameters(), "lr": settings["score_lr"]})
    elif "topology" in fixed:
        network = made_sparse(network, task, method, sparsity, settings, seed)
    scores = {id(score) for group in groups for score in group["params"]}
    groups[0]["params"] = [p for p in network.parameters() if p.requires_grad and id(p) not in scores]
    rho = settings.get("rho")
    optimizer = torch.optim.Adam(groups) if rho is None else S2SAM(groups, torch.optim.Adam, rho=rho)
    if "topology" in fixed:
        train_sparsely(network, optimizer, task.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / task.steps)))
    generator = torch.Generator().manual_seed(seed + 1000)
    network.train()
    for step in range(1, task.steps + 1):
        batch = torch.randint(len(x), (task.batch,), generator=generator)
        with optimizer.perturb() if isinstance(optimizer, S2SAM) else nullcontext():
            loss = F.cross_entropy(network(x[batch]), y[batch])
            (loss if peer is None else loss + peer.loss(step)).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if peer is not None:
            peer.step(step)
    network.eval()
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in x_test.split(200)])
    right = int((answers == y_test).sum())
    return {"accuracy": 100 * right / len(x_test), "sparsity": zeros(network, task)}


@torch.no_grad()
def zeros(network: nn.Module, task: Task) -> float:
    """Share of zeros among the weights of the layers that become sparse."""
    plain = network.merge_and_unload() if isinstance(network, PeftModel) else network  # type: ignore[operator]
    weights = [layer.weight for layer in sparse_layers(plain, task).values()]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


class Book:
    """Runs that are done, in a file.

    Args:
        path: of the file.
        task: name of the task.
    """

    def __init__(self, path: Path, task: str) -> None:
        self.path, self.task = path, task
        self.runs: Runs = read_json(path, {})

    def accuracy(self, data: Data, part: str, method: str, sparsity: float, seed: int, **settings: Any) -> float:
        """Of one run, done now if it is not in the file."""
        how = json.dumps(settings, sort_keys=True)
        key = f"{self.task}|{part}|{method}|{0.0 if is_dense(method) else sparsity}|{seed}|{how}"
        if key not in self.runs:
            self.runs[key] = run(TASKS[self.task], data, method, sparsity, settings, seed)
            print(key, self.runs[key], flush=True)
            write_json(self.path, self.runs)
        return self.runs[key]["accuracy"]


def is_dense(method: str) -> bool:
    """Whether a method makes nothing sparse, so that it has one run for all sparsities."""
    return method.startswith("dense")


def searches(task: Task, method: str) -> list[dict[str, tuple[Any, ...]]]:
    """Setting -> values tried, of the settings that are chosen together; in the order in which they are chosen."""
    grid = GRID | {"lr": task.rates}
    groups = [(name,) if isinstance(name, str) else name for name in METHODS[method][1]]
    return [{name: grid[name] for name in group} for group in groups]


def choose(book: Book, data: Data, method: str, sparsity: float = CHOSEN_AT) -> dict[str, Any]:
    """Settings of a method, each chosen with those before it."""
    together = searches(TASKS[book.task], method)
    best = {name: values[0] for search in together for name, values in search.items()}
    for search in together:
        tried = [best | dict(zip(search, values, strict=True)) for values in product(*search.values())]
        best = max(
            tried,
            key=lambda s: mean(book.accuracy(data, "validation", method, sparsity, seed, **s) for seed in CHOSEN_BY),
        )
    return best


def table(runs: Runs, chosen: dict[str, dict[str, Any]]) -> str:
    """A table a task: accuracy, and BiDST's differences from each other method."""
    parts = []
    for task in chosen:
        tested = {tuple(k.split("|")[2:5]): r["accuracy"] for k, r in runs.items() if k.startswith(f"{task}|test|")}
        sparsities = sorted({s for _, s, _ in tested} - {"0.0"})
        rows = []
        for method in METHODS:
            cells: list[str] = []
            for s in sparsities:
                of = accuracies(tested, method, s)
                cells.append(mean_and_deviation(list(of.values())))
                for ours in ("bidst", "bidst, dense first"):
                    own = accuracies(tested, ours, s)
                    both = [own[seed] - of[seed] for seed in own if seed in of]
                    cells.append(mean_and_interval(both) if both and ours != method else "")
            if any(cells):
                rows.append([method, *cells, ", ".join(f"{k}={v}" for k, v in chosen[task].get(method, {}).items())])
        heads = [h for s in sparsities for h in (f"{float(s):.0%} zeros", "BiDST minus it", "dense first minus it")]
        parts.append(f"**{task}**\n\n{markdown(['method', *heads, 'chosen'], rows)}\n")
    return "\n".join(parts)


def accuracies(tested: dict[tuple[str, ...], float], method: str, sparsity: str) -> dict[str, float]:
    """Seed -> accuracy; of dense ones, whatever the sparsity."""
    wanted = (method, "0.0" if is_dense(method) else sparsity)
    return {seed: accuracy for (m, s, seed), accuracy in tested.items() if (m, s) == wanted}


def plot(runs: Runs, tasks: Sequence[str], path: Path) -> None:
    """Accuracy over sparsity: a panel a task, a line a method."""
    panels: dict[str, dict[str, list[tuple[str, list[float]]]]] = {}
    dense: dict[str, float] = {}
    for task in tasks:
        tested = {tuple(k.split("|")[2:5]): r["accuracy"] for k, r in runs.items() if k.startswith(f"{task}|test|")}
        if not tested:
            continue
        lines = {
            method: [(f"{s:.0%}", list(accuracies(tested, method, str(s)).values())) for s in SPARSITIES]
            for method in METHODS
            if not is_dense(method)
        }
        panels[task] = {m: [p for p in line if p[1]] for m, line in lines.items() if any(p[1] for p in line)}
        dense |= {task: mean(accuracies(tested, "dense", "").values())} if accuracies(tested, "dense", "") else {}
    if panels:
        plot_panels(panels, path, "zeros", "bidst", dense)


def parser() -> argparse.ArgumentParser:
    """The options."""
    return comparison_parser(__doc__, "sparse_finetuning", TASKS, METHODS, SPARSITIES)


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    path = arguments.output / "chosen.json"
    chosen: dict[str, dict[str, Any]] = read_json(path, {})
    for name in arguments.tasks:
        book, data = Book(arguments.output / "runs.json", name), TASKS[name].data()
        for method in arguments.methods:
            if method not in chosen.setdefault(name, {}):
                chosen[name][method] = choose(book, held_back(data), method)
                write_json(path, chosen)
        for seed in range(arguments.seeds):
            for sparsity in arguments.sparsities:
                for method in arguments.methods:
                    book.accuracy(data, "test", method, sparsity, seed, **chosen[name][method])
    runs: Runs = read_json(arguments.output / "runs.json", {})
    plot(runs, list(chosen), arguments.output / "accuracy.png")
    write_table(arguments.output / "table.md", table(runs, chosen))


if __name__ == "__main__":
    main()
