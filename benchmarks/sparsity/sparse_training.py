"""Sparse training from scratch, method against method: `python -m benchmarks.sparsity.sparse_training`.

Tasks (`--tasks`): Fashion-MNIST with an MLP, with a ResNet with BatchNorm and with a small ViT; topics of R52 and of 20
newsgroups with an MLP over word counts. Methods (`--methods`): dense, and at each sparsity static (random), SET, MEST,
RigL, RigL with gradients levelled as BiDST's are, BiDST, BiDST that reads gradients of candidates at every step, and
BiDST with S2-SAM and ZO-SAM. All get the same data, epochs, learning rates, ERK budgets and a random
first topology; a seed fixes initial weights and the order of batches for all methods alike.

Each run is written to `results/sparse_training/runs.json` when it ends, and not done again: the same command goes on
where it stopped, and makes table and plot of whatever runs there are. Accuracy is that of the last epoch on the test
set; no run is chosen by it. Training FLOPs are counted from densities and steps, not measured. Mask work is measured:
seconds spent on scores and exchanges, and on copying the gradients they read.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn

from benchmarks.harness.plots import plot_panels
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import gain, markdown, mean_and_deviation, mean_and_interval
from benchmarks.models.small_networks import SmallViT
from benchmarks.sparsity.tasks import TASKS, Data, Task, comparison_parser
from hf_efficient import S2SAM, ZOSAM, BiDSTConfig, recalibrate_batch_norm, train_sparsely
from hf_efficient.methods import SPARSITY, settings_of
from hf_efficient.sparsity.tuner.layer import BiDSTLayer
from hf_efficient.sparsity.tuner.targets import weight_of

SPARSITIES = (0.9, 0.95, 0.98)
#: Method -> topology, and settings that differ from its own.
TOPOLOGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {}),
    "set": ("set", {}),
    "mest": ("mest", {}),
    "rigl": ("rigl", {}),
    "rigl-levelled": ("rigl", {"levelling": 0.5}),
    "bidst": ("bidst", {}),
    "bidst-every-step": ("bidst", {"score_interval": 1}),
}
METHODS = ("dense", *TOPOLOGIES, "bidst+s2sam", "bidst+zosam")
RHO = 0.05


def run(task: Task, data: Data, method: str, sparsity: float, seed: int) -> dict[str, Any]:
    """Train once; accuracy, time, mask work and counted FLOPs."""
    x, y, x_test, y_test = data
    name, _, sharpness = method.partition("+")
    torch.manual_seed(seed)
    model: nn.Module = task.network()
    if method != "dense":
        topology, settings = TOPOLOGIES[name]
        config = BiDSTConfig(
            sparsity=sparsity,
            topology=topology,
            **settings_of(SPARSITY, topology, init="random", update_interval=task.interval) | settings,
            target_modules=task.sparse_layers,
            backend="dense",
            seed=seed,
        )
        model = get_peft_model(model, config)
    base_lr = 0.1 if not isinstance(task.network(), SmallViT) else 0.05
    parameters = [p for p in model.parameters() if p.requires_grad]
    of_sgd: dict[str, Any] = {"lr": base_lr, "momentum": 0.9, "weight_decay": 5e-4}
    outer = {"": None, "s2sam": S2SAM, "zosam": ZOSAM}[sharpness]
    optimizer: Any = (
        torch.optim.SGD(parameters, **of_sgd)
        if outer is None
        else outer(parameters, torch.optim.SGD, rho=RHO, **of_sgd)
    )
    batches = len(x) // task.batch
    steps = task.epochs * batches
    training = train_sparsely(model, optimizer, steps) if method != "dense" else None
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer if outer is None else optimizer.base, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps))
    )
    began = time.perf_counter()
    model.train()
    for batch in batch_order(len(x), task, seed):
        if outer is not None:
            optimizer.perturb(lambda b=batch: F.cross_entropy(model(x[b]), y[b]))
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    if outer is not None and any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        recalibrate_batch_norm(model, [x[b] for b in torch.arange(len(x)).split(500)[:10]])
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x_test[b]).argmax(1) == y_test[b]).sum()) for b in torch.arange(len(y_test)).split(500))
    result: dict[str, Any] = {"accuracy": 100 * right / len(x_test), "seconds": seconds, "steps": steps}
    result["flops"] = count_flops(model, x[:1], task, steps, training)
    if training is not None:
        report = training.report()
        result["mask_seconds"] = report["mask_time_share"] * (time.perf_counter() - training.began)
        result |= {name: report[name] for name in ("sparsity", "mask_updates", "itop_rate", "mask_iou")}
    return result


def batch_order(n: int, task: Task, seed: int) -> Iterator[Tensor]:
    """Batches of indices, the same for every method."""
    generator = torch.Generator().manual_seed(seed + 1000)
    for _ in range(task.epochs):
        order = torch.randperm(n, generator=generator)
        yield from order.split(task.batch)[: n // task.batch]


def count_flops(model: nn.Module, example: Tensor, task: Task, steps: int, training: Any) -> float:
    """Training FLOPs, counted: 2 per multiplication and weight used, for forward, dL/dx and dL/dw, over active weights;
    plus the inactive weights of dL/dw at the steps at which the topology reads it."""
    uses: list[tuple[int, int]] = []  # (weights, active ones) times output positions

    def count(module: Any, _: Any, out: Tensor) -> None:
        weight = weight_of(module)
        positions = out.numel() // (out.shape[1] if isinstance(module, nn.Conv2d) or out.dim() == 4 else out.shape[-1])
        active = len(module.sparse_weight("default").indices) if isinstance(module, BiDSTLayer) else weight.numel()
        uses.append((weight.numel() * positions, active * positions))

    inner = {id(m.base_layer) for m in model.modules() if isinstance(m, BiDSTLayer)}
    kinds = (nn.Linear, nn.Conv2d, BiDSTLayer)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds) and id(m) not in inner]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    reads = sum(training.topology.reads_gradient(t) for t in range(1, steps + 1)) if training is not None else 0
    per_step = sum(6 * active for _, active in uses)
    extra = sum(2 * (total - active) for total, active in uses)
    return float((steps * per_step + reads * extra) * task.batch)


def key_of(task: str, method: str, sparsity: float, seed: int) -> str:
    """Name of a run in the JSON file."""
    return f"{task} {method} {0.0 if method == 'dense' else sparsity} {seed}"


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Means and standard deviations over seeds, medians of times; one row per task and method."""
    parts: list[str] = []
    for task in dict.fromkeys(key.split()[0] for key in runs):
        sparsities = sorted({float(key.split()[2]) for key in runs if key.split()[0] == task} - {0.0})
        heads = [f"{s:.0%} sparse" for s in sparsities]
        rows = []
        for method in METHODS:
            columns = [accuracies(runs, task, method, s) for s in (sparsities if method != "dense" else [0.0])]
            if not any(columns):
                continue
            cells = [mean_and_deviation(c) for c in columns]
            cells += ["" for _ in range(len(sparsities) - len(cells))]
            some = [r for key, r in runs.items() if key.split()[:2] == [task, method]]
            mask = f"{median(r['mask_seconds'] for r in some):.2f}" if method != "dense" else ""
            seeds = min(len(c) for c in columns if c)
            flops = [share_of_flops(runs, task, method, sparsity) for sparsity in sparsities]
            cells += [str(seeds), *flops, f"{median(r['seconds'] for r in some):.0f}", mask]
            rows.append([method, *cells])
        shares = [f"FLOPs of dense, {sparsity:.0%}" for sparsity in sparsities]
        head = ["method", *heads, "seeds", *shares, "s", "mask work, s"]
        parts.append(f"**{task}**\n\n{markdown(head, rows)}\n")
    return "\n".join(parts)


def share_of_flops(runs: dict[str, dict[str, Any]], task: str, method: str, sparsity: float) -> str:
    """Training FLOPs of a method at a sparsity, over those of dense training."""
    of = {
        name: [r["flops"] for key, r in runs.items() if key.split()[:3] == [task, name, str(share)]]
        for name, share in (("dense", 0.0), (method, 0.0 if method == "dense" else sparsity))
    }
    return f"{mean(of[method]) / mean(of['dense']):.3f}" if all(of.values()) else ""


def summary(runs: dict[str, dict[str, Any]]) -> str:
    """Means of all tasks side by side; BiDST minus the best other method there, paired over seeds, 95 % interval."""
    others = [method for method in TOPOLOGIES if not method.startswith("bidst")]
    rows = []
    for task, sparsity in itertools.product(dict.fromkeys(key.split()[0] for key in runs), SPARSITIES):
        ours = by_seed(runs, task, "bidst", sparsity)
        means = {method: mean(found) for method in others if (found := accuracies(runs, task, method, sparsity))}
        if not ours or not means:
            continue
        best = max(means, key=lambda method: means[method])
        lead = mean_and_interval(over(runs, task, best, sparsity))
        cells = [f"{means[method]:.1f}" if method in means else "" for method in others]
        dense = accuracies(runs, task, "dense", 0.0)
        dense_cell = f"{mean(dense):.1f}" if dense else ""
        rows.append([task, f"{sparsity:.0%}", dense_cell, *cells, f"{mean(ours.values()):.1f}", lead, best])
    head = ["", "sparsity", "dense", *others, "bidst", "bidst minus the best other", "which is"]
    return markdown(head, rows)


def leads(runs: dict[str, dict[str, Any]]) -> str:
    """BiDST minus each other method, paired over seeds, with the 95 % interval."""
    others = [method for method in TOPOLOGIES if method != "bidst"]
    rows = []
    for task, sparsity in itertools.product(dict.fromkeys(key.split()[0] for key in runs), SPARSITIES):
        cells = [gain(over(runs, task, method, sparsity)) for method in others]
        if any(cells):
            rows.append([task, f"{sparsity:.0%}", *cells])
    title = "**BiDST minus each other method**, same seeds: mean and 95 % interval"
    return f"{title}\n\n{markdown(['', 'sparsity', *(f'minus {method}' for method in others)], rows)}"


def over(runs: dict[str, dict[str, Any]], task: str, method: str, sparsity: float) -> list[float]:
    """BiDST minus a method, for each seed that both have."""
    ours, theirs = (by_seed(runs, task, name, sparsity) for name in ("bidst", method))
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def by_seed(runs: dict[str, dict[str, Any]], task: str, method: str, sparsity: float) -> dict[str, float]:
    """Seed -> accuracy."""
    wanted = [task, method, str(sparsity)]
    return {key.split()[3]: r["accuracy"] for key, r in runs.items() if key.split()[:3] == wanted}


def accuracies(runs: dict[str, dict[str, Any]], task: str, method: str, sparsity: float) -> list[float]:
    """Of all seeds."""
    return list(by_seed(runs, task, method, sparsity).values())


def plot(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy over sparsity: a panel per task, a line per method."""
    tasks = list(dict.fromkeys(key.split()[0] for key in runs))
    panels: dict[str, dict[str, list[tuple[str, list[float]]]]] = {}
    for task in tasks:
        lines = {m: [(f"{s:.0%}", accuracies(runs, task, m, s)) for s in SPARSITIES] for m in METHODS[1:]}
        panels[task] = {method: [point for point in line if point[1]] for method, line in lines.items()}
        panels[task] = {method: line for method, line in panels[task].items() if line}
    dense = {task: accuracies(runs, task, "dense", 0.0) for task in tasks}
    plot_panels(panels, path, "sparsity", "bidst", {task: mean(a) for task, a in dense.items() if a})


def parser() -> argparse.ArgumentParser:
    """The options."""
    return comparison_parser(__doc__, "sparse_training", TASKS, METHODS, SPARSITIES)


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    path = arguments.output / "runs.json"
    runs: dict[str, dict[str, Any]] = read_json(path, {})
    for name in arguments.tasks:
        data: Data | None = None
        for seed in range(arguments.seeds):
            for sparsity in arguments.sparsities:
                for method in arguments.methods:
                    key = key_of(name, method, sparsity, seed)
                    if key in runs:
                        continue
                    data = data or TASKS[name].data()
                    runs[key] = run(TASKS[name], data, method, sparsity, seed)
                    print(key, json.dumps({k: round(v, 4) for k, v in runs[key].items()}), flush=True)
                    write_json(path, runs)
    plot(runs, arguments.output / "accuracy.png")
    write_table(arguments.output / "table.md", f"{summary(runs)}\n\n{leads(runs)}\n\n{table(runs)}")


if __name__ == "__main__":
    main()
