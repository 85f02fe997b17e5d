"""How pretrained networks are fine-tuned while they become sparse, and how a method's settings are chosen.

A method is what is fixed of it, and the settings that are chosen, one after the other or together, on training data
held back: `METHODS`, `GRID` and `Book.settings`. `sparse_finetuning.py` and `half_zeros.py` compare methods by it.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from benchmarks.harness.results import read_json, write_json
from benchmarks.sparsity.movement import MovementPruning
from benchmarks.sparsity.pretrained_tasks import TASKS, Task
from benchmarks.sparsity.tasks import Data, held_back
from hf_efficient import S2SAM, BiDSTConfig, prune_wanda, train_sparsely

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
Fixed = dict[str, Any]
#: What is fixed of a method, and the settings that are chosen; those of a tuple together.
Method = tuple[Fixed, tuple[str | tuple[str, ...], ...]]
METHODS: dict[str, Method] = {
    "dense": ({}, ("lr",)),
    "magnitude": ({"topology": "static"}, ("lr", "distribution")),
    "wanda": ({"topology": "static", "distribution": "as_pruned"}, ("lr",)),
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
    "set, Wanda's mask": ({"topology": "set", "distribution": "as_pruned"}, (BOTH, "grow_from")),
    "rigl, Wanda's mask": ({"topology": "rigl", "distribution": "as_pruned"}, (BOTH, "grow_from", "levelling")),
    "bidst, Wanda's mask": ({"topology": "bidst", "distribution": "as_pruned"}, (BOTH, "levelling", "score_interval")),
    "dense, S2-SAM": ({}, ("lr", "rho")),
    "bidst, S2-SAM": ({"topology": "bidst"}, (BOTH, "distribution", "levelling", "score_interval", "rho")),
}
Runs = dict[str, dict[str, float]]
Tested = dict[tuple[str, str, str], float]  # method, sparsity, seed -> accuracy


def is_dense(method: str) -> bool:
    """Whether a method makes nothing sparse, so that it has one run for all sparsities."""
    return method.startswith("dense")


def sparse_layers(network: nn.Module, task: Task) -> dict[str, nn.Linear]:
    """Names of the layers that become sparse, as `target_modules` matches them."""
    found = {name: m for name, m in network.named_modules() if re.fullmatch(task.layers, name)}
    return {name: m for name, m in found.items() if isinstance(m, nn.Linear)}


def made_sparse(
    network: nn.Module, task: Task, fixed: Fixed, sparsity: float, settings: dict[str, Any], seed: int
) -> nn.Module:
    """The network with a mask that the package's engine, or nobody, moves."""
    shared: dict[str, Any] = {"target_modules": task.layers, "backend": "dense", "seed": seed}
    if fixed["topology"] != "static":
        shared |= {"update_interval": task.interval, "stop_fraction": STOP}
    chosen = {name: value for name, value in settings.items() if name not in ("lr", "rho")}
    says = "pattern" in fixed or fixed.get("distribution") == "as_pruned"  # how sparse it is
    amount: dict[str, Any] = {} if says else {"sparsity": sparsity}
    return get_peft_model(network, BiDSTConfig(**amount, **fixed, **shared, **chosen))


def run(task: Task, data: Data, fixed: Fixed, sparsity: float, settings: dict[str, Any], seed: int) -> dict[str, float]:
    """Train once; accuracy in percent, and the sparsity that was reached.

    Args:
        task: what is trained.
        data: training inputs and classes, then those that the accuracy is of.
        fixed: what is fixed of the method: fields of `BiDSTConfig`, or "soft" of movement pruning, or nothing if it is
            dense. With the distribution "as_pruned" the network is pruned by Wanda first.
        sparsity: at the end; not read where a pattern says it.
        settings: learning rate and what else is chosen.
        seed: of the head, the batches and the masks.
    """
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    network = task.network()
    peer: MovementPruning | None = None
    groups = [{"params": [], "lr": settings["lr"]}]
    if fixed.get("distribution") == "as_pruned":
        calibration = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:128]]
        amount: dict[str, Any] = {"pattern": fixed["pattern"]} if "pattern" in fixed else {"sparsity": sparsity}
        prune_wanda(network, [calibration], **amount, target_modules=list(sparse_layers(network, task)))
    if "soft" in fixed:
        layers = sparse_layers(network, task).values()
        peer = MovementPruning(layers, sparsity, int(STOP * task.steps), fixed["soft"], settings.get("penalty", 0.0))
        groups.append({"params": peer.parameters(), "lr": settings["score_lr"]})
    elif "topology" in fixed:
        network = made_sparse(network, task, fixed, sparsity, settings, seed)
    scores = {id(score) for group in groups for score in group["params"]}
    groups[0]["params"] = [p for p in network.parameters() if p.requires_grad and id(p) not in scores]
    rho = settings.get("rho")
    optimizer = torch.optim.Adam(groups) if rho is None else S2SAM(groups, torch.optim.Adam, rho=rho)
    if "topology" in fixed:
        train_sparsely(network, optimizer, task.steps)
    train(task, network, optimizer, peer, x, y, seed)
    network.eval()
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in x_test.split(200)])
    right = int((answers == y_test).sum())
    return {"accuracy": 100 * right / len(x_test), "sparsity": zeros(network, task)}


def train(
    task: Task,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    peer: MovementPruning | None,
    x: Tensor,
    y: Tensor,
    seed: int,
) -> None:
    """On batches drawn by chance, with a cosine."""
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


@torch.no_grad()
def zeros(network: nn.Module, task: Task) -> float:
    """Share of zeros among the weights of the layers that become sparse."""
    plain = network.merge_and_unload() if isinstance(network, PeftModel) else network  # type: ignore[operator]
    weights = [layer.weight for layer in sparse_layers(plain, task).values()]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def searches(task: Task, method: Method) -> list[dict[str, tuple[Any, ...]]]:
    """Setting -> values tried, of the settings that are chosen together; in the order in which they are chosen."""
    grid = GRID | {"lr": task.rates}
    groups = [(name,) if isinstance(name, str) else name for name in method[1]]
    return [{name: grid[name] for name in group} for group in groups]


def first_values(together: list[dict[str, tuple[Any, ...]]]) -> dict[str, Any]:
    """Of every setting that is chosen."""
    return {name: values[0] for search in together for name, values in search.items()}


def climbed(values: list[float], start: float, worth: Callable[[float], float]) -> float:
    """The value that no neighbour is better than, from `start` upwards in worth."""
    at = values.index(start)
    while True:
        near = [i for i in (at, at - 1, at + 1) if 0 <= i < len(values)]
        best = max(near, key=lambda i: worth(values[i]))
        if best == at:
            return values[at]
        at = best


class Book:
    """Runs that are done and settings that are chosen, in two files of a folder.

    Args:
        output: the folder, with runs.json and chosen.json.
        methods: by name.
        at: sparsity at which settings are chosen.
    """

    def __init__(self, output: Path, methods: Mapping[str, Method], at: float = CHOSEN_AT) -> None:
        self.output, self.methods, self.at = output, methods, at
        self.runs: Runs = read_json(output / "runs.json", {})
        self.chosen: dict[str, dict[str, dict[str, Any]]] = read_json(output / "chosen.json", {})

    def compare(
        self,
        task: str,
        names: Iterable[str],
        sparsities: Iterable[float],
        seeds: int,
        like: str | None = None,
    ) -> None:
        """Choose what is not chosen, then open the test set with the seeds 0, 1, ...

        Args:
            task: by name.
            names: of the methods.
            sparsities: at which the test set is opened.
            seeds: how many.
            like: a task whose settings are taken, those of the method, or where it was not run there of what it is a
                variant of, or of RigL; the learning rate alone is searched, from the first of this task to neighbours
                while these are better, with one seed.
        """
        data, names = TASKS[task].data(), list(names)
        for name in names:
            if name not in self.chosen.setdefault(task, {}):
                chosen = self.settings if like is None else partial(self.settings_like, like=like)
                self.chosen[task][name] = chosen(task, held_back(data), name)
                write_json(self.output / "chosen.json", self.chosen)
        for seed, sparsity, name in product(range(seeds), sparsities, names):
            self.accuracy(task, data, "test", name, sparsity, seed, self.chosen[task][name])

    def settings(self, task: str, data: Data, name: str) -> dict[str, Any]:
        """Settings of a method, each chosen with those before it."""
        together = searches(TASKS[task], self.methods[name])
        best = first_values(together)

        def on_held_back(settings: dict[str, Any]) -> float:
            return mean(self.accuracy(task, data, "validation", name, self.at, seed, settings) for seed in CHOSEN_BY)

        for search in together:
            tried = [best | dict(zip(search, values, strict=True)) for values in product(*search.values())]
            best = max(tried, key=on_held_back)
        return best

    def settings_like(self, task: str, data: Data, name: str, like: str) -> dict[str, Any]:
        """Settings taken from another task, but for the learning rate."""
        there = self.chosen[like]
        known = next(there[each] for each in (name, name.partition(",")[0], "rigl") if each in there)
        best = first_values(searches(TASKS[task], self.methods[name]))
        best |= {setting: value for setting, value in known.items() if setting in best and setting != "lr"}

        def on_held_back(rate: float) -> float:
            settings = best | {"lr": rate}
            return self.accuracy(task, data, "validation", name, self.at, CHOSEN_BY[0], settings)

        return best | {"lr": climbed(sorted(TASKS[task].rates), best["lr"], on_held_back)}

    def accuracy(
        self, task: str, data: Data, part: str, name: str, sparsity: float, seed: int, settings: dict[str, Any]
    ) -> float:
        """Of one run, done now if it is not in the file."""
        how = json.dumps(settings, sort_keys=True)
        key = f"{task}|{part}|{name}|{0.0 if is_dense(name) else sparsity}|{seed}|{how}"
        if key not in self.runs:
            self.runs[key] = run(TASKS[task], data, self.methods[name][0], sparsity, settings, seed)
            print(key, self.runs[key], flush=True)
            write_json(self.output / "runs.json", self.runs)
        return self.runs[key]["accuracy"]

    def tested(self, task: str) -> Tested:
        """Method, sparsity and seed -> accuracy on the test set."""
        found = {tuple(k.split("|")[2:5]): r for k, r in self.runs.items() if k.startswith(f"{task}|test|")}
        return {(name, sparsity, seed): r["accuracy"] for (name, sparsity, seed), r in found.items()}


def accuracies(tested: Tested, method: str, sparsity: str) -> dict[str, float]:
    """Seed -> accuracy; of dense ones, whatever the sparsity."""
    wanted = (method, "0.0" if is_dense(method) else sparsity)
    return {seed: accuracy for (m, s, seed), accuracy in tested.items() if (m, s) == wanted}


def listed(settings: Mapping[str, Any]) -> str:
    """Settings for a cell."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())
