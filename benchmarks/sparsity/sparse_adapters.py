"""Adapters with equally many trainable values: `python -m benchmarks.sparsity.sparse_adapters`.

LoRA, SHiRA (random static support), Supertuning (largest weights, static), GaLLoP's rule (largest |dL/dw| / |w|,
static) and BiDST's delta, whose support is chosen in the first ten steps, as GaLLoP's is here, and then moves, on the
top layer of MiniLM-L6, 1.8M weights; what the five below make of a text is computed once. Tasks: sentiment of film
reviews (no film in both splits), 20 newsgroups, R52. Budgets: 0.1, 0.5 and 2 % of the weights: as many values as LoRA
has at rank 1 and 6 on query and value, and at rank 5 on all layers. All methods train the same head at the same rate.

The adapter's learning rate is chosen for each task, method and budget on training texts held back, seed 0: of three
rates a factor 2 apart the one with the lowest loss, and while that is the lowest or highest tried, one more beside it.
The search starts around what 20 newsgroups, the first task searched, chose for this method and budget. Everything else
is the same for all: Adam, steps, batches, cosine.

Each run is written when it ends and not done again. Bytes of the adapter file and of what training holds (values,
indices, gradients, Adam's moments; activations kept for backward) are counted from the tensors; `--times` measures the
time of a step of all methods in turns.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, ShiraConfig, SupertuningConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plot_panels
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown, mean_and_deviation, mean_and_interval
from benchmarks.harness.timing import time_in_turns
from benchmarks.models.minilm_top import MiniLMTop, below_top, hidden_states
from hf_efficient import BiDSTConfig, train_sparsely
from hf_efficient.budget.memory import kept_for_backward

TASKS = {"rotten_tomatoes": 2, "newsgroups": 20, "reuters_r52": 52}
SEARCHED = ("newsgroups", "rotten_tomatoes", "reuters_r52")  # the order in which learning rates are searched
METHODS = ("lora", "shira", "supertuning", "gallop", "bidst")
ALL = r"layers\..*(query|key|value|dense)"
SOME = r"layers\..*(query|value)"
BUDGETS = {0.1: (1, SOME), 0.5: (6, SOME), 2.0: (5, ALL)}  # percent -> LoRA's rank and layers
TRAIN, HELD_BACK, STEPS, BATCH, TOKENS = 2000, 500, 60, 16, 16
HEAD_RATE = 5e-3
Data = tuple[Tensor, Tensor, Tensor, Tensor]
Runs = dict[str, dict[str, float]]


def load(task: str) -> tuple[Data, Data]:
    """Training texts with those held back, and with those of the test split."""
    x, y, x_test, y_test = hidden_states(task)
    x, y = below_top(x[: TRAIN + HELD_BACK, :TOKENS]), y[: TRAIN + HELD_BACK]
    x_test = below_top(x_test[:, :TOKENS])
    return (x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]), (x[:TRAIN], y[:TRAIN], x_test, y_test)


def weights_of(model: nn.Module) -> int:
    """Weights of all linear layers that adapters may take."""
    return sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "head")


def lora_values(budget: float) -> int:
    """Trainable values of LoRA at a budget."""
    rank, layers = BUDGETS[budget]
    model = get_peft_model(MiniLMTop(2, 1), LoraConfig(r=rank, target_modules=layers))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def config_of(method: str, budget: float, seed: int) -> PeftConfig:
    """An adapter with as many values as LoRA has."""
    rank, layers = BUDGETS[budget]
    common: dict[str, Any] = {"modules_to_save": ["head"]}
    if method == "lora":
        return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, **common)
    if method == "shira":  # r (in + out) values a layer, as LoRA
        return ShiraConfig(r=rank, target_modules=layers, random_seed=seed, **common)
    sparsity = 1 - lora_values(budget) / weights_of(MiniLMTop(2, 1))
    if method == "supertuning":
        return SupertuningConfig(sparsity=sparsity, target_modules=ALL, **common)
    common |= {"topology": "static"} if method == "gallop" else {"update_interval": 5, "score_interval": 5}
    return BiDSTConfig(
        target="delta",
        sparsity=sparsity,
        target_modules=ALL,
        distribution="global",
        init_steps=10,
        seed=seed,
        **common,
    )


def prepare(classes: int, method: str, budget: float, rate: float, seed: int) -> tuple[nn.Module, torch.optim.Adam]:
    """Model and optimizer."""
    torch.manual_seed(seed)
    model: nn.Module = get_peft_model(MiniLMTop(classes, 1), config_of(method, budget, seed))
    head = [p for n, p in model.named_parameters() if p.requires_grad and ".head." in n]
    rest = [p for n, p in model.named_parameters() if p.requires_grad and ".head." not in n]
    optimizer = torch.optim.Adam([{"params": rest, "lr": rate}, {"params": head, "lr": HEAD_RATE}])
    if method in ("gallop", "bidst"):
        training = train_sparsely(model, optimizer, STEPS)
        if method == "gallop":  # gradients are multiplied by these (Choudhary et al., 2025, arXiv 2510.19778)
            training.bases = {name: 1 / (base.abs() + 1e-8) for name, base in training.bases.items()}
    return model.train(), optimizer


def train(model: nn.Module, optimizer: torch.optim.Adam, x: Tensor, y: Tensor, seed: int) -> None:
    """On batches drawn by chance, with a cosine."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / STEPS)))
    generator = torch.Generator().manual_seed(seed + 1000)
    for _ in range(STEPS):
        batch = torch.randint(len(x), (BATCH,), generator=generator)
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def run(data: Data, classes: int, method: str, budget: float, rate: float, seed: int) -> dict[str, float]:
    """Train once; accuracy and loss on the last two of `data`, and sizes."""
    x, y, x_test, y_test = data
    model, optimizer = prepare(classes, method, budget, rate, seed)
    train(model, optimizer, x, y, seed)
    first = x[:BATCH].clone()  # a slice would count as the whole data set
    activations = kept_for_backward(model, lambda: model(first))
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x_test.split(200)])
    values = sum(p.numel() for p in optimizer.param_groups[0]["params"])
    head = sum(p.numel() for p in optimizer.param_groups[1]["params"])
    indices = sum(b.nbytes for n, b in model.named_buffers() if n.endswith("indices"))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # type: ignore[operator]
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
    return {
        "accuracy": 100 * float((logits.argmax(1) == y_test).float().mean()),
        "loss": float(F.cross_entropy(logits, y_test)),
        "values": values,
        "file_bytes": size - 4 * head,
        "state_bytes": 16 * values + indices,
        "activation_bytes": activations,
    }


def choose_rate(data: Data, classes: int, method: str, budget: float, start: float) -> dict[str, float]:
    """Rate -> held-back loss; the best is not at the edge of what was tried."""
    tried: dict[float, float] = {}
    wanted = [start / 2, start, 2 * start]
    while wanted:
        for rate in wanted:
            tried[rate] = run(data, classes, method, budget, rate, 0)["loss"]
        best = min(tried, key=lambda rate: tried[rate])
        wanted = [best / 2] if best == min(tried) else [best * 2] if best == max(tried) else []
    return {str(rate): tried[rate] for rate in sorted(tried)}


def best_of(rates: dict[str, float]) -> float:
    """The rate of the lowest loss."""
    return float(min(rates, key=lambda rate: rates[rate]))


def step_times(data: Data, methods: list[str]) -> dict[str, float]:
    """Mean ms of a training step at 0.5 %, over a whole training; methods take turns."""
    x, y = data[0], data[1]

    def step_of(method: str) -> Callable[[], None]:
        model, optimizer = prepare(TASKS["newsgroups"], method, 0.5, 1e-3, 0)

        def step() -> None:
            F.cross_entropy(model(x[:BATCH]), y[:BATCH]).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    seconds = time_in_turns({method: step_of(method) for method in methods}, STEPS, warm_up=False)
    return {method: 1e3 * mean(values) for method, values in seconds.items()}


def of(runs: Runs, task: str, method: str, budget: float) -> list[dict[str, float]]:
    """All seeds."""
    return [r for key, r in runs.items() if key.split("|")[:3] == [task, method, str(budget)]]


def difference(runs: Runs, task: str, method: str, budget: float) -> list[float]:
    """Accuracy of BiDST minus that of a method, of every seed that both have."""
    pairs = [(key, key.replace("|bidst|", f"|{method}|")) for key in runs if key.startswith(f"{task}|bidst|{budget}|")]
    return [runs[ours]["accuracy"] - runs[other]["accuracy"] for ours, other in pairs if other in runs]


def table(stored: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds, paired differences, chosen rates, sizes."""
    runs, budgets = stored["runs"], [f"{budget} %" for budget in BUDGETS]
    parts = [f"**{task}**, test accuracy\n\n{accuracies(runs, task, budgets)}\n" for task in TASKS]
    others = [
        [task, method, *(mean_and_interval(difference(runs, task, method, b)) for b in BUDGETS)]
        for task in TASKS
        for method in METHODS[:4]
    ]
    for method in METHODS[:4]:  # a seed's mean over the tasks
        each = [zip(*(difference(runs, task, method, b) for task in TASKS), strict=False) for b in BUDGETS]
        others.append(["mean of tasks", method, *(mean_and_interval([mean(d) for d in seeds]) for seeds in each)])
    title = "**BiDST minus others**, same seeds: mean and 95 % interval"
    parts += [title, "", markdown(["task", "minus", *budgets], [row for row in others if any(row[2:])])]
    rates = []
    for task, method in ((t, m) for t in TASKS for m in METHODS):
        found = [stored["rates"].get(f"{task}|{method}|{b}") for b in BUDGETS]
        if any(found):
            rates.append([task, method, *(f"{best_of(r):g}" if r else "" for r in found)])
    parts += ["", markdown(["learning rate: task", "method", *budgets], rates), "", sizes(stored)]
    return "\n".join(parts)


def accuracies(runs: Runs, task: str, budgets: list[str]) -> str:
    """Test accuracy of a task: mean and standard deviation over seeds."""
    rows = []
    for method in METHODS:
        columns = [[r["accuracy"] for r in of(runs, task, method, b)] for b in BUDGETS]
        if any(columns):
            rows.append([method, *map(mean_and_deviation, columns), min(len(c) for c in columns if c)])
    return markdown(["method", *budgets, "seeds"], rows)


def sizes(stored: dict[str, Any]) -> str:
    """Values, bytes and time of the methods of which every budget is there; a cell holds all budgets."""
    rows = []
    for method in METHODS:
        examples = [next(iter(of(stored["runs"], "newsgroups", method, b)), None) for b in BUDGETS]
        found = [example for example in examples if example is not None]
        if len(found) < len(BUDGETS):
            continue
        row = [method, " / ".join(f"{e['values']:.0f}" for e in found)]
        row += [" / ".join(f"{e[name] / 1e3:.0f}" for e in found) for name in ("file_bytes", "state_bytes")]
        row.append(" / ".join(f"{e['activation_bytes'] / 1e6:.1f}" for e in found))
        row.append(f"{stored['step_ms'][method]:.0f}" if method in stored["step_ms"] else "")
        rows.append(row)
    head = ["method", "values", "file, kB", "state in training, kB", "activations, MB", "step, ms"]
    return markdown(head, rows)


def plot(runs: Runs, path: Path) -> None:
    """Accuracy over budget: a panel per task."""
    panels: dict[str, dict[str, list[tuple[str, list[float]]]]] = {}
    for task in TASKS:
        for method in METHODS:
            points = [(f"{b} %", [r["accuracy"] for r in of(runs, task, method, b)]) for b in BUDGETS]
            if any(accuracies for _, accuracies in points):
                panels.setdefault(task, {})[method] = [point for point in points if point[1]]
    plot_panels(panels, path, "trainable share", "bidst")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "sparse_adapters")
    made.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--times", action="store_true", help="measure the time of a step, and nothing else")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    path = arguments.output / "runs.json"
    stored: dict[str, Any] = read_json(path, {"rates": {}, "runs": {}, "step_ms": {}})
    keep = partial(write_json, path, stored)
    if arguments.times:
        stored["step_ms"] = step_times(load("newsgroups")[0], arguments.methods)
        keep()
        write_table(arguments.output / "table.md", table(stored))
        return
    data = {task: load(task) for task in SEARCHED if task in arguments.tasks}
    for task, budget, method in product(data, BUDGETS, arguments.methods):
        key, first = f"{task}|{method}|{budget}", f"{SEARCHED[0]}|{method}|{budget}"
        if key not in stored["rates"]:
            start = best_of(stored["rates"][first]) if first in stored["rates"] else 1e-2
            stored["rates"][key] = choose_rate(data[task][0], TASKS[task], method, budget, start)
            print(key, stored["rates"][key], flush=True)
            keep()
    for seed, task, budget, method in product(range(arguments.seeds), arguments.tasks, BUDGETS, arguments.methods):
        key = f"{task}|{method}|{budget}|{seed}"
        if key not in stored["runs"]:
            rate = best_of(stored["rates"][f"{task}|{method}|{budget}"])
            stored["runs"][key] = run(data[task][1], TASKS[task], method, budget, rate, seed)
            print(key, json.dumps(stored["runs"][key]), flush=True)
            keep()
    plot(stored["runs"], arguments.output / "accuracy.png")
    write_table(arguments.output / "table.md", table(stored))


if __name__ == "__main__":
    main()
