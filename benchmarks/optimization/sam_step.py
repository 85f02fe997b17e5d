"""What a sharpness-aware step costs: `python -m benchmarks.optimization.sam_step`

Time and memory of a training step of every method, as ratios to the plain Trainer step: a ViT and a BERT-size encoder
in `Trainer`, and pytorch_optimizer's SAM family beside ours in a plain loop. All methods take turns, step by step, in
one process with one thread; ratios are medians over rounds of (this method's step) / (the plain step of the same
round). LookSAM's are means, since every fifth step of it costs more: give it a multiple of five rounds; so are ZO-SAM's
with m = 1 on the whole batch, of whose steps half take a pass more. Memory is what the method holds between steps, plus
the peak of tensor bytes that a step allocates beyond what was there before it, as torch's profiler counts them;
`--rounds 0` measures it alone. Results of several calls (`--models`, `--methods`) are joined; in a plain loop each
optimizer has its own state, which those beside it push out of the caches: `--ours` takes some. On a machine that does
other work, too, take `--clock cpu`: the time that the process computed. The first ten steps of a run, in which a
remembered gradient is copied to see whether the base optimizer overwrites it, are not what is measured.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.harness.timing import CLOCKS, ratio, time_in_turns
from benchmarks.optimization.sam_loop_steps import BASES, OURS, loop_steps
from benchmarks.optimization.sam_trainer_steps import METHODS, trainer_steps
from hf_efficient.budget.memory import peak_bytes
from hf_efficient.optimization.engine.memory import MemoryGuard

#: Methods whose steps differ in kind, of which a median would show but one.
UNEVEN = ("LookSAM, k=5", "ours: LookSAM, k=5", "pytorch_optimizer: LookSAM, k=5", "ZO-SAM")
GOALS = {
    "S2-SAM": 1.03, "ZO-SAM, half the batch": 1.36, "ZO-SAM": 1.70, "SAM": 2.05, "ours: S2SAM": 1.03,
    "ours: ZOSAM": 1.70,
}  # fmt: skip
PLAIN_AT_FIRST = (
    "plain", "S2-SAM", "ours: S2SAM", "ours: ZOSAM, guided", "MSAM", "guided ZO-SAM, half the batch", "guided ZO-SAM",
)  # fmt: skip


def vit(batch: int, side: int = 224) -> tuple[Any, dict[str, torch.Tensor]]:
    """ViT-S/16, 22M parameters, images of 224 x 224 or another size."""
    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, num_labels=100,
        image_size=side,
    )  # fmt: skip
    return ViTForImageClassification(config), {
        "pixel_values": torch.randn(batch, 3, side, side), "labels": torch.arange(batch) % 100,
    }  # fmt: skip


def bert(batch: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """BERT-base, 109M parameters, 128 tokens."""
    model = BertForSequenceClassification(BertConfig(num_labels=2))
    return model, {"input_ids": torch.randint(0, 30000, (batch, 128)), "labels": torch.arange(batch) % 2}


MODELS: dict[str, Callable[[int], Any]] = {
    "ViT-S": vit, "BERT-base": bert, "ViT-S, 96 pixels": functools.partial(vit, side=96),
}  # fmt: skip


def begin(steps: dict[str, Callable[[], None]]) -> None:
    """The first step of a method that remembers the last one is not what it does afterwards."""
    for name in steps:
        if name in PLAIN_AT_FIRST:
            steps[name]()


def measure(steps: dict[str, Callable[[], None]], rounds: int, clock: str) -> dict[str, dict[str, Any]]:
    """Median ratio of each step to the plain one of the same round, and its median seconds."""
    seconds = time_in_turns(steps, rounds, warm_up=False, clock=CLOCKS[clock])
    return {
        name: {
            "seconds": middle(values), "ratio": ratio(seconds, name, "plain", middle), "rounds": rounds, "clock": clock,
        }
        for name, values in seconds.items()
        for middle in (statistics.fmean if name in UNEVEN else statistics.median,)
    }  # fmt: skip


def held_bytes(trainer: Any) -> int:
    """What the method keeps from one step to the next, with the memory of copies."""
    if not getattr(trainer, "_variant", None):
        return 0
    remembered = [d.nbytes for direction in trainer._variant.memory.values() for d in direction.values()]
    return sum(remembered) + trainer._step_check.buffers.nbytes


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    parts = []
    for model, of in result["trainer"].items():
        cells = [
            [name, row["batch"], seconds_of(row), f"{row['ratio']:.3f}",
             f"{GOALS[name]:.2f}" if name in GOALS else "",
             f"{of['extra_copies'][name]:.2f}" if name in of["extra_copies"] else ""]
            for name, row in of["methods"].items()
        ]  # fmt: skip
        head = ["method", "batch", "step s", "ratio to plain", "goal", "extra peak memory, copies of the weights"]
        parts.append(f"**{model}** ({of['parameters'] / 1e6:.0f}M parameters, Trainer)\n\n{markdown(head, cells)}\n")
    for model, of in result["loop"].items():
        cells = [
            [name, seconds_of(row), f"{row['ratio']:.3f}", f"{GOALS[name]:.2f}" if name in GOALS else ""]
            for name, row in of["methods"].items()
        ]
        head = ["optimizer", "step s", "ratio to plain", "goal"]
        title = f"**{model}**, batch {of['batch']}, plain loop, {of.get('optimizer', 'SGD')}"
        parts.append(f"{title}\n\n{markdown(head, cells)}\n")
    return "\n".join(parts)


def seconds_of(row: dict[str, Any]) -> str:
    """Of a step, and of which clock."""
    return f"{row['seconds']:.2f}{' (CPU)' if row.get('clock') == 'cpu' else ''}"


def plot(result: dict[str, Any], path: Path) -> None:
    """Ratios as bars, if there are any of a Trainer."""
    models = list(result["trainer"])
    if not models:
        return
    figure, axes = plt.subplots(1, len(models), figsize=(5 * len(models), 3.6), squeeze=False, layout="constrained")
    for axis, model in zip(axes[0], models, strict=True):
        rows = result["trainer"][model]["methods"]
        axis.barh(list(rows), [row["ratio"] for row in rows.values()], color="steelblue")
        for number, row in enumerate(rows.values()):
            axis.text(row["ratio"] + 0.02, number, f"{row['ratio']:.2f}", va="center", fontsize=8)
        axis.invert_yaxis()
        axis.axvline(1, color="grey", linewidth=1)
        axis.set(title=model, xlabel="time of a step / plain step", xlim=(0, 2.4))
    save(figure, path, 130)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "sam_step")
    made.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    made.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS), help="with plain, or none")
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="one more step of each")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument(
        "--loop", action=argparse.BooleanOptionalAction, default=True, help="the plain loop and its peers"
    )
    made.add_argument("--ours", nargs="+", choices=list(OURS), default=list(OURS), help="in the plain loop")
    made.add_argument("--optimizer", choices=list(BASES), default="SGD", help="of the plain loop")
    made.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="in the plain loop")
    made.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: what the process computed")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    MemoryGuard.PROBES = 0
    record_run(arguments.output)
    path = arguments.output / "results.json"
    result = read_json(path, {"trainer": {}, "loop": {}})
    for name in arguments.models:
        if arguments.methods:
            add_trainer_steps(result["trainer"], name, arguments)
        if arguments.loop and arguments.rounds:
            add_loop_steps(result["loop"], name, arguments)
        write_json(path, result)
    plot(result, arguments.output / "ratios.png")
    write_table(arguments.output / "table.md", table(result))


def add_loop_steps(result: dict[str, Any], name: str, arguments: argparse.Namespace) -> None:
    """Measure a model's steps in a plain loop and join them with the results there are."""
    steps = loop_steps(MODELS[name], arguments.batch, arguments.optimizer, arguments.ours, arguments.peers)
    begin(steps)
    of = {"batch": arguments.batch, "optimizer": arguments.optimizer}
    known = result.get(name, {})
    before = known["methods"] if of.items() <= known.items() else {}
    result[name] = {**of, "methods": before | measure(steps, arguments.rounds, arguments.clock)}


def add_trainer_steps(result: dict[str, Any], name: str, arguments: argparse.Namespace) -> None:
    """Measure a model's steps in `Trainer` and join them with the results there are."""
    steps = trainer_steps(MODELS[name], arguments.batch, arguments.methods)
    alone = {method: step for method, (_, step) in steps.items()}
    begin(alone)
    rows = measure(alone, arguments.rounds, arguments.clock) if arguments.rounds else {}
    rows = {method: {**row, "batch": arguments.batch} for method, row in rows.items()}
    parameters = sum(p.numel() for p in steps["plain"][0].model.parameters())
    of = result.setdefault(name, {"parameters": parameters, "methods": {}, "extra_copies": {}})
    if arguments.memory:
        bytes_of = {m: peak_bytes(step) + held_bytes(trainer) for m, (trainer, step) in steps.items()}
        of["extra_copies"] |= {m: (b - bytes_of["plain"]) / (4 * parameters) for m, b in bytes_of.items()}
    of["methods"] = {m: rows.get(m, of["methods"].get(m)) for m in METHODS if m in rows or m in of["methods"]}


if __name__ == "__main__":
    main()
