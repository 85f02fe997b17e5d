"""What it costs to move weights: `python -m benchmarks.sparsity.mask_work`.

Time that a topology takes beside training (scores, exchanges, reading gradients of inactive weights), on the MLP of
`sparse_training.py` with random images, over the first half of a training. RigL exchanges every 100 steps, as
published; BiDST too, and reads gradients for its scores every 10 steps, or 50. Methods take turns, step by step, so
that a busy machine hits all alike. Writes JSON, table and plot.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.sparsity.sparse_training import TASKS
from hf_efficient import BiDSTConfig, train_sparsely

SPARSITIES = (0.9, 0.95, 0.98)
SETTINGS: dict[str, dict[str, Any]] = {
    "static": {"topology": "static"},
    "set": {"topology": "set"},
    "rigl": {"topology": "rigl"},
    "bidst": {"topology": "bidst"},
    "bidst, score_interval=50": {"topology": "bidst", "score_interval": 50},
}


def mask_ms(sparsity: float, steps: int) -> dict[str, float]:
    """Method -> ms of mask work for 100 steps."""
    task = TASKS["mlp"]
    generator = torch.Generator().manual_seed(0)
    runs: dict[str, tuple[Any, torch.optim.SGD, Any]] = {}
    for name, settings in SETTINGS.items():
        torch.manual_seed(0)
        config = BiDSTConfig(
            sparsity=sparsity, init="random", target_modules=task.sparse_layers, backend="dense", **settings
        )
        model = get_peft_model(task.network(), config)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)
        runs[name] = (model, optimizer, train_sparsely(model, optimizer, 2 * steps))
    for _ in range(steps):
        x, y = torch.randn(task.batch, 784, generator=generator), torch.randint(10, (task.batch,), generator=generator)
        for model, optimizer, _ in runs.values():
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {
        name: 1e5 / steps * (training.seconds + sum(weight.seconds for weight in training.weights.values()))
        for name, (_, _, training) in runs.items()
    }


def table(result: dict[str, dict[str, float]]) -> str:
    """ms for 100 steps, and as a multiple of RigL's."""
    head = ["mask work of 100 steps, ms (times RigL's)", *(f"{float(s):.0%}" for s in result)]
    rows = [
        [name, *(f"{row[name]:.1f} ({row[name] / row['rigl']:.1f})" for row in result.values())] for name in SETTINGS
    ]
    return markdown(head, rows)


def plot(result: dict[str, dict[str, float]], path: Path) -> None:
    """ms over sparsity."""
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for name in SETTINGS:
        axes.plot([f"{float(s):.0%}" for s in result], [row[name] for row in result.values()], marker="o", label=name)
    axes.set(xlabel="sparsity", ylabel="mask work of 100 steps, ms", ylim=0)
    axes.legend(fontsize=8)
    save(figure, path, 130)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "mask_work")
    made.add_argument("--steps", type=int, default=500, help="a multiple of 100")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    result = {str(s): mask_ms(s, arguments.steps) for s in SPARSITIES}
    write_json(arguments.output / "results.json", result)
    write_table(arguments.output / "table.md", table(result))
    plot(result, arguments.output / "mask_work.png")


if __name__ == "__main__":
    main()
