"""What it costs to move weights: `python -m benchmarks.sparsity.mask_work`.

Time that a topology takes beside training (scores, exchanges, reading gradients of inactive weights), over the first
half of a training with random images, on the MLP of `sparse_training.py` (0.27 million weights) and on one of 19
million. All exchange every 100 steps, as RigL was published. BiDST has three settings: its default; gradients of
candidates read at every step; and the cheapest, one candidate for every active weight, read at exchanges only. Methods
take turns, step by step, so that a busy machine hits all alike. Beside the time: mask work as a share of the step's
time, and the FLOPs that reading gradients adds to a step's (2 for each weight and position read, to 6 for each active
one). `--methods` takes BiDST's controls (`controls.py`) as well. Writes JSON, table and plot.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.sparsity.controls import CONTROLS, add_controls
from benchmarks.sparsity.tasks import mlp
from hf_efficient import BiDSTConfig, train_sparsely

INTERVAL = 100
SPARSITIES = (0.9, 0.95, 0.98)
NETWORKS = {"0.27M": ((784, 300, 100, 10), "[02]", 128), "19M": ((784, 4000, 4000, 10), "[02]", 16)}
SETTINGS: dict[str, dict[str, Any]] = {
    "static": {"topology": "static"},
    "set": {"topology": "set"},
    "rigl": {"topology": "rigl"},
    "bidst": {"topology": "bidst"},
    "bidst, every step": {"topology": "bidst", "score_interval": 1},
    "bidst, cheapest": {"topology": "bidst", "score_interval": INTERVAL, "candidates": 1.0},
}


def mask_work(network: str, methods: list[str], sparsity: float, steps: int) -> dict[str, dict[str, float]]:
    """Method -> ms of mask work and ms of training, for 100 steps, and FLOPs of reading as a share of a step's."""
    sizes, layers, batch = NETWORKS[network]
    generator = torch.Generator().manual_seed(0)
    runs: dict[str, tuple[nn.Module, torch.optim.SGD, Any]] = {}
    for name in methods:
        torch.manual_seed(0)
        settings = SETTINGS.get(name) or {"topology": name} | CONTROLS[name][1]
        config = BiDSTConfig(sparsity=sparsity, init="random", target_modules=layers, backend="dense", **settings)
        model: nn.Module = get_peft_model(mlp(*sizes), config)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)
        runs[name] = (model, optimizer, train_sparsely(model, optimizer, 2 * steps))
    seconds: dict[str, float] = defaultdict(float)
    for _ in range(steps):
        x, y = torch.randn(batch, sizes[0], generator=generator), torch.randint(10, (batch,), generator=generator)
        for name, (model, optimizer, _) in runs.items():
            began = time.perf_counter()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds[name] += time.perf_counter() - began
    found = {}
    for name, (_, _, training) in runs.items():
        mask = training.seconds + sum(weight.seconds for weight in training.weights.values())
        found[name] = {
            "mask_ms": 1e5 / steps * mask,
            "ms": 1e5 / steps * seconds[name],
            "reading": reading(training, steps),
        }
    return found


def reading(training: Any, steps: int) -> float:
    """FLOPs of the gradients of inactive weights that are read, over those of training the active ones."""
    weights = training.weights.values()
    active, topology = sum(len(w.indices) for w in weights), training.topology
    read = 0
    for step in range(1, steps + 1):
        if topology.reads_gradient(step):
            some = [topology.gradient_indices(w, step) for w in weights]
            read += sum(w.numel if s is None else len(s) for w, s in zip(weights, some, strict=True)) - active
    return 2 * read / (6 * active * steps)


def table(results: dict[str, dict[str, Any]]) -> str:
    """ms for 100 steps, as a multiple of RigL's, as a share of the step; and FLOPs."""
    parts = []
    for network, result in results.items():
        head = ["mask work of 100 steps", *(f"{float(s):.0%} sparse, ms" for s in result)]
        head += [h for s in result for h in (f"{float(s):.0%}: times RigL's", "of the step's time", "FLOPs added")]
        rows = []
        for name in next(iter(result.values())):
            cells = [f"{row[name]['mask_ms']:.1f}" for row in result.values()]
            for row in result.values():
                of, rigl = row[name], row["rigl"]["mask_ms"]
                share = f"{of['mask_ms'] / of['ms']:.1%}"
                cells += [f"{of['mask_ms'] / rigl:.2f}", share, f"{of['reading']:.1%}"]
            rows.append([name, *cells])
        parts.append(f"**{network} weights**\n\n{markdown(head, rows)}\n")
    return "\n".join(parts)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """ms over sparsity, a panel a network."""
    figure, panels = plt.subplots(1, len(results), figsize=(5 * len(results), 3.5), layout="constrained", squeeze=False)
    for axes, (network, result) in zip(panels[0], results.items(), strict=True):
        for name in next(iter(result.values())):
            heights = [row[name]["mask_ms"] for row in result.values()]
            axes.plot([f"{float(s):.0%}" for s in result], heights, marker="o", label=name)
        axes.set(title=f"{network} weights", xlabel="sparsity", ylabel="mask work of 100 steps, ms", ylim=0)
        axes.legend(fontsize=8)
    save(figure, path, 130)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "mask_work")
    made.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    choices = dict.fromkeys([*SETTINGS, *CONTROLS])
    made.add_argument("--methods", nargs="+", default=list(SETTINGS), choices=list(choices))
    made.add_argument("--cpu-time", action="store_true", help="count seconds of the processor: for a busy machine")
    made.add_argument("--intervals", type=at_least_one, default=3, help=f"of {INTERVAL} steps each")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    if arguments.cpu_time:
        time.perf_counter = time.process_time  # the package's own clock too
    if not set(arguments.methods) <= set(SETTINGS):
        add_controls()  # not else: their hook looks at every forward
    record_run(arguments.output)
    path = arguments.output / "results.json"
    results: dict[str, dict[str, Any]] = {k: v for k, v in read_json(path, {}).items() if k in NETWORKS}
    for network in arguments.networks:
        steps = INTERVAL * arguments.intervals
        results[network] = {str(s): mask_work(network, arguments.methods, s, steps) for s in SPARSITIES}
        write_json(path, results)
    write_table(arguments.output / "table.md", table(results))
    plot(results, arguments.output / "mask_work.png")


if __name__ == "__main__":
    main()
