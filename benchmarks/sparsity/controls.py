"""Does each part of BiDST act? `python -m benchmarks.sparsity.controls`

BiDST against itself with one part switched off, turned round or left to chance (`CONTROLS`), on the tasks of
`sparse_training.py` and of `sparse_finetuning.py` (there with the settings that were chosen for BiDST), with 15 % of
the training data held back in place of the test set. Every run is written when it ends and not done again. Differences
are paired over seeds.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.options import RESULTS, at_least_one, common_parser
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown, mean_and_interval
from benchmarks.sparsity import fine_tuning, pretrained_tasks, sparse_training, tasks
from benchmarks.sparsity.drawn_candidates import ByChance, ByStatistics, keep_statistics
from benchmarks.sparsity.sparse_training import SPARSITIES, TOPOLOGIES
from hf_efficient.methods import SPARSITY
from hf_efficient.optimizer_state import Pace
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.topology import BiDST


class Off(BiDST):
    """Dormant weights do not learn."""

    def observe(self, weight: SparseWeight, step: int, pace: Pace) -> None:
        """Without a pace."""
        super().observe(weight, step, Pace(0.0, pace.by_size, 0.0))


class Turned(BiDST):
    """The candidates that have learned least are the best."""

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The scores turned round."""
        candidates, psi = super().grow_scores(weight, generator)
        return candidates, psi.max() - psi if len(psi) else psi


class Chance(BiDST):
    """Any candidate is as good as another."""

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The scores of others."""
        candidates, psi = super().grow_scores(weight, generator)
        return candidates, psi[torch.randperm(len(psi), generator=generator)]


class Restart(BiDST):
    """What dormant weights have learned is forgotten at every exchange."""

    def after_exchange(self, weight: SparseWeight) -> None:
        """Back to zero."""
        super().after_exchange(weight)
        weight.memory["dormant"] *= 0


class Cold(BiDST):
    """Grown weights start at zero."""

    def before_exchange(self, weight: SparseWeight, slots: Tensor, indices: Tensor) -> None:
        """No first values."""
        super().before_exchange(weight, slots, indices)


class Gathered(BiDST):
    """Grown weights start with all that they have gathered."""

    def before_exchange(self, weight: SparseWeight, slots: Tensor, indices: Tensor) -> Tensor:
        """The dormant values as they are."""
        dormant = torch.zeros(weight.numel, device=slots.device)
        dormant[weight.memory["candidates"]] = weight.memory["dormant"]
        super().before_exchange(weight, slots, indices)
        return dormant[indices]


class LayerPace(BiDST):
    """SGD's momentum is left out of the pace, as in earlier versions."""

    def observe(self, weight: SparseWeight, step: int, pace: Pace) -> None:
        """A tenth as far."""
        super().observe(weight, step, pace._replace(rate=pace.rate / 10))


class Growth(BiDST):
    """psi = |theta| + rho (|theta| - |theta_0|): of two weights of one size, the one that has grown is the better."""

    def rho(self, weight: SparseWeight) -> float:
        """Once more than in the closed form."""
        return 1.0

    def psi(self, weight: SparseWeight, indices: Tensor, theta: Tensor) -> Tensor:
        """Scores of entries; from scratch growth is size, and the order the same."""
        if weight.start is None:
            return theta.abs()
        return theta.abs() + self.rho(weight) * (theta.abs() - weight.start[indices].float().abs())

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """Of the active weights."""
        return self.psi(weight, weight.long_indices, weight.whole_values().float())

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of the candidates."""
        candidates = weight.memory["candidates"]
        return candidates, self.psi(weight, candidates, weight.memory["dormant"])


class GrowthByMovement(Growth):
    """The same with a rho that follows how far the layer has moved."""

    def rho(self, weight: SparseWeight) -> float:
        """Movement over magnitude: 0 at the start."""
        assert weight.start is not None
        start = weight.start[weight.long_indices].float()
        return float((weight.whole_values().float() - start).abs().sum() / start.abs().sum())


HALF = {"candidates": 2.0, "score_interval": 10}
CONTROLS: dict[str, tuple[type[BiDST], dict[str, Any]]] = {
    "bidst": (BiDST, {}),
    "dormant weights do not learn": (Off, {}),
    "scores turned round": (Turned, {}),
    "scores by chance": (Chance, {}),
    "dormant weights restart at exchanges": (Restart, {}),
    "grown weights start at zero": (Cold, {}),
    "grown weights keep all they gathered": (Gathered, {}),
    "a tenth of the pace": (LayerPace, {}),
    "growth counts once more": (Growth, {}),
    "growth counts by movement": (GrowthByMovement, {}),
    "raw gradients": (BiDST, {"levelling": 0.0}),
    "one candidate for each active weight": (BiDST, {"candidates": 1.0}),
    "gradients read at exchanges only": (BiDST, {"score_interval": 100}),
    "both (the cheapest)": (BiDST, {"score_interval": 100, "candidates": 1.0}),
    "gradients read at every step": (BiDST, {"score_interval": 1}),
    "candidates by statistics": (ByStatistics, {}),
    "candidates by chance": (ByChance, {}),
    "two candidates, read half as often": (BiDST, HALF),
    "two by statistics, read half as often": (ByStatistics, HALF),
    "two by chance, read half as often": (ByChance, HALF),
    "one candidate by statistics": (ByStatistics, {"candidates": 1.0}),
    "one candidate by chance": (ByChance, {"candidates": 1.0}),
}


ALL_TASKS: dict[str, Any] = {**pretrained_tasks.TASKS, **tasks.TASKS}  # "newsgroups" and "r52" are those from scratch


def add_controls() -> None:
    """Add the controls to the methods that `BiDSTConfig` and `sparse_training.run` know."""
    ours = SPARSITY.row("bidst")
    for name, (implementation, settings) in CONTROLS.items():
        if name != "bidst":
            where = f"{implementation.__module__}:{implementation.__name__}"
            SPARSITY.methods += (replace(ours, name=name, where=where),)
        TOPOLOGIES[name] = (name, settings)
    keep_statistics()


def accuracy(task: str, data: tasks.Data, name: str, sparsity: float, seed: int) -> float:
    """Of one run on held-back data."""
    if task in tasks.TASKS:
        return float(sparse_training.run(tasks.TASKS[task], data, name, sparsity, seed)["accuracy"])
    chosen = read_json(RESULTS / "sparse_finetuning" / "chosen.json", {})[task]["bidst"]
    settings, fixed = chosen | CONTROLS[name][1], {"topology": name}
    return fine_tuning.run(pretrained_tasks.TASKS[task], data, fixed, sparsity, settings, seed)["accuracy"]


def table(runs: dict[str, float], task: str) -> str:
    """Accuracy of BiDST, and each control minus it."""
    rows = []
    for name in CONTROLS:
        cells = []
        for sparsity in SPARSITIES:
            ours, theirs = (by_seed(runs, task, one, sparsity) for one in ("bidst", name))
            both = [theirs[seed] - ours[seed] for seed in theirs if seed in ours]
            shown = (
                f"{mean(ours.values()):.1f}" if name == "bidst" and ours else mean_and_interval(both) if both else ""
            )
            cells.append(shown)
        if any(cells):
            rows.append([name, *cells])
    return f"**{task}**\n\n{markdown(['', *(f'{s:.0%} sparse' for s in SPARSITIES)], rows)}\n"


def by_seed(runs: dict[str, float], task: str, name: str, sparsity: float) -> dict[str, float]:
    """Seed -> accuracy."""
    return {key.split("|")[3]: a for key, a in runs.items() if key.split("|")[:3] == [task, name, str(sparsity)]}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "bidst_controls")
    made.add_argument("--tasks", nargs="+", default=["newsgroups", "moved"], choices=ALL_TASKS)
    made.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    made.add_argument("--controls", nargs="+", default=list(CONTROLS), choices=list(CONTROLS))
    made.add_argument("--seeds", type=at_least_one, default=3)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    add_controls()
    path: Path = arguments.output / "runs.json"
    runs: dict[str, float] = read_json(path, {})
    for task in arguments.tasks:
        data: tasks.Data | None = None
        for seed in range(100, 100 + arguments.seeds):
            for sparsity in arguments.sparsities:
                for name in arguments.controls:
                    key = f"{task}|{name}|{sparsity}|{seed}"
                    if key not in runs:
                        data = data or tasks.held_back(ALL_TASKS[task].data())
                        runs[key] = accuracy(task, data, name, sparsity, seed)
                        print(key, runs[key], flush=True)
                        write_json(path, runs)
    measured = dict.fromkeys(key.split("|")[0] for key in runs)
    write_table(arguments.output / "table.md", "\n".join(table(runs, task) for task in measured))


if __name__ == "__main__":
    main()
