"""Adapters with equally many trainable values: `python benchmarks/sparse_adapters.py`.

LoRA, SHiRA (random static support), Supertuning (largest weights, static), and BiDST's delta, whose support is chosen
by the first gradients and then moves (or rests: "bidst static"), on the two top layers of MiniLM-L6: 3.5M weights; the
four layers below are frozen and their outputs are computed once. Tasks: sentiment of film reviews (no film in both
splits), 20 newsgroups, R52. Budgets: 0.1, 0.5 and 2 % of the weights: as many values as LoRA has at rank 1 and 6
on query and value, and at rank 5 on all layers; all methods also train the same head. Learning rate of each method: the
best of its grid on training texts held back, seed 0. Everything else is the same: Adam, steps, batches, cosine.

Each run is written when it ends and not done again. Time of a step and bytes of the adapter file are measured too.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from minilm_top import MiniLMTop, hidden_states
from peft import LoraConfig, PeftConfig, ShiraConfig, SupertuningConfig, get_peft_model
from torch import Tensor, nn

from hf_efficient import BiDSTConfig, train_sparsely

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TASKS = {"rotten_tomatoes": 2, "newsgroups": 20, "reuters_r52": 52}
METHODS = ("lora", "shira", "supertuning", "bidst", "bidst static")
ALL = r"layers\..*(query|key|value|dense)"
SOME = r"layers\..*(query|value)"
BUDGETS = {0.1: (1, SOME), 0.5: (6, SOME), 2.0: (5, ALL)}  # percent -> LoRA's rank and layers
RATES = {"lora": (1e-3, 4e-3), **dict.fromkeys(METHODS[1:], (1e-3, 4e-3))}
TRAIN, HELD_BACK, STEPS, BATCH = 2000, 500, 120, 16
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def places_of(model: nn.Module) -> int:
    """Weights of all linear layers that adapters may take."""
    return sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "head")


def lora_values(budget: float) -> int:
    """Trainable values of LoRA at a budget."""
    rank, layers = BUDGETS[budget]
    model = get_peft_model(MiniLMTop(2), LoraConfig(r=rank, target_modules=layers))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def config_of(method: str, budget: float, seed: int) -> PeftConfig:
    """An adapter with as many values as LoRA has."""
    rank, layers = BUDGETS[budget]
    common: dict[str, Any] = {"modules_to_save": ["head"]}
    if method == "lora":
        return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, **common)
    if method == "shira":  # r (in + out) values a layer, as LoRA
        return ShiraConfig(r=rank, target_modules=layers, random_seed=seed, **common)
    sparsity = 1 - lora_values(budget) / places_of(MiniLMTop(2))
    if method == "supertuning":
        return SupertuningConfig(sparsity=sparsity, target_modules=ALL, **common)
    return BiDSTConfig(
        target="delta",
        sparsity=sparsity,
        target_modules=ALL,
        topology="static" if method.endswith("static") else "bidst",
        distribution="global",
        init_steps=8,
        update_interval=10,
        score_interval=5,
        seed=seed,
        **common,
    )


def run(data: Data, classes: int, method: str, budget: float, rate: float, seed: int) -> dict[str, float]:
    """Train once; accuracy on the last two of `data`."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    model = get_peft_model(MiniLMTop(classes), config_of(method, budget, seed))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / STEPS)))
    if isinstance(model.peft_config["default"], BiDSTConfig):
        train_sparsely(model, optimizer, STEPS)
    generator = torch.Generator().manual_seed(seed + 1000)
    times = []
    model.train()
    for _ in range(STEPS):
        batch = torch.randint(len(x), (BATCH,), generator=generator)
        began = time.perf_counter()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
        scheduler.step()
    model.eval()
    with torch.no_grad():
        parts = torch.arange(len(y_test)).split(200)
        right = sum(int((model(x_test[b]).argmax(1) == y_test[b]).sum()) for b in parts)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
    head = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and ".head." in n)
    return {
        "accuracy": 100 * right / len(y_test),
        "values": sum(p.numel() for p in model.parameters() if p.requires_grad) - head,
        "file_bytes": size - 4 * head,
        "step_ms": 1e3 * median(times),
        "optimizer_bytes": sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.dim()) - 8 * head,
    }


def table(runs: dict[str, dict[str, float]]) -> str:
    """Mean and standard deviation over seeds; one row per task and method."""
    lines = []
    for task in dict.fromkeys(key.split("|")[0] for key in runs):
        lines += [
            f"**{task}**",
            "",
            "| method | " + " | ".join(f"{b} %" for b in BUDGETS) + " | seeds | step, ms | file, kB |",
        ]
        lines.append("|---" * (len(BUDGETS) + 4) + "|")
        for method in METHODS:
            rows = {b: [r for k, r in runs.items() if k.split("|")[:3] == [task, method, str(b)]] for b in BUDGETS}
            some = [r for group in rows.values() for r in group]
            if not some:
                continue
            accuracies = [[r["accuracy"] for r in group] for group in rows.values()]
            cells = [f"{mean(a):.2f} ± {stdev(a) if len(a) > 1 else 0:.2f}" if a else "" for a in accuracies]
            cells.append(str(min(len(a) for a in accuracies if a)))
            cells.append(f"{median(r['step_ms'] for r in some):.0f}")
            cells.append(" / ".join(f"{group[0]['file_bytes'] / 1e3:.0f}" for group in rows.values() if group))
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(runs: dict[str, dict[str, float]], path: Path) -> None:
    """Accuracy over budget: a panel per task."""
    tasks = list(dict.fromkeys(key.split("|")[0] for key in runs))
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.6 * len(tasks), 3.8), layout="constrained", squeeze=False)
    for task, axes in zip(tasks, panels[0], strict=True):
        for method in METHODS:
            points = [
                (b, [r["accuracy"] for k, r in runs.items() if k.split("|")[:3] == [task, method, str(b)]])
                for b in BUDGETS
            ]
            points = [(b, a) for b, a in points if a]
            errors = [stdev(a) / math.sqrt(len(a)) if len(a) > 1 else 0 for _, a in points]
            style = {"color": "black", "linewidth": 2.2} if method == "bidst" else {"linewidth": 1.2}
            axes.errorbar([f"{b} %" for b, _ in points], [mean(a) for _, a in points], errors, marker="o", capsize=3,
                          label=method, **style)  # fmt: skip
        axes.set(title=task, xlabel="trainable share", ylabel="test accuracy, %")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sparse_adapters")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "runs.json"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rates": {}, "runs": {}}

    def keep() -> None:
        partial = path.with_suffix(f".{os.getpid()}.part")
        partial.write_text(json.dumps(stored, indent=1) + "\n")
        partial.rename(path)

    for task in arguments.tasks:
        x, y, x_test, y_test = hidden_states(task)
        held = slice(TRAIN, TRAIN + HELD_BACK)
        for seed in range(arguments.seeds):
            for budget in arguments.budgets:
                for method in arguments.methods:
                    choice, key = f"{task}|{method}|{budget}", f"{task}|{method}|{budget}|{seed}"
                    if choice not in stored["rates"]:
                        probe = (x[:TRAIN], y[:TRAIN], x[held], y[held])
                        tried = {r: run(probe, TASKS[task], method, budget, r, 0)["accuracy"] for r in RATES[method]}
                        stored["rates"][choice] = max(tried, key=lambda r: tried[r])
                        keep()
                    if key not in stored["runs"]:
                        data = (x[:TRAIN], y[:TRAIN], x_test, y_test)
                        result = run(data, TASKS[task], method, budget, stored["rates"][choice], seed)
                        stored["runs"][key] = result
                        print(key, stored["rates"][choice], json.dumps(result), flush=True)
                        keep()
    (arguments.output / "table.md").write_text(table(stored["runs"]) + "\n")
    plot(stored["runs"], arguments.output / "accuracy.png")
    print(table(stored["runs"]))


if __name__ == "__main__":
    main()
