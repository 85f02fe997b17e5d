"""Who finds the weights that a sparse teacher has? `python -m benchmarks.sparsity.planted`

A linear teacher, y = W x + noise, of which 5 % of 2,000 weights are not zero, or 1 of each 4 inputs of an output;
correlated inputs, as much noise as signal. A student of the same density starts on a mask drawn apart from the
teacher's, and trains for 1,000 steps of SGD. Measured is the share of the teacher's weights that are active at the
end: all topologies, and BiDST with parts switched off or turned round. A run takes half a second.
"""

import argparse
import math
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.sparsity.controls import CONTROLS
from hf_efficient.methods import SPARSITY
from hf_efficient.sparsity.pattern import Groups, NMPattern
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.training.engine import SparseTraining

#: What is planted -> its pattern.
PLANTED: dict[str, NMPattern | None] = {"5 % of the weights": None, "1 of each 4": NMPattern(1, 4)}
TOPOLOGIES = ("static", "set", "mest", "rigl", "bidst")
PARTS = (
    "dormant weights do not learn",
    "scores turned round",
    "scores by chance",
    "dormant weights restart at exchanges",
    "grown weights start at zero",
    "grown weights keep all they gathered",
    "raw gradients",
)


def random_weight(shape: tuple[int, ...], k: int, seed: int) -> SparseWeight:
    """A weight with k random active entries, small random values."""
    generator = torch.Generator().manual_seed(seed)
    weight = SparseWeight(shape, k)
    indices = torch.randperm(weight.numel, generator=generator)[:k]
    weight.select(indices, 0.1 * torch.randn(k, generator=generator))
    return weight


def patterned(shape: tuple[int, ...], axis: int, pattern: NMPattern, seed: int, more: int = 0) -> SparseWeight:
    """A weight with N random active entries of each group along an axis, and `more` beyond them."""
    generator = torch.Generator().manual_seed(seed)
    groups = Groups.along(pattern, shape, axis)
    entries = math.prod(shape)
    first = set(groups.best(torch.rand(entries, generator=generator)).tolist())
    rest = [i for i in range(entries) if i not in first]
    chosen = torch.tensor([*first, *rest[:: max(1, len(rest) // max(1, more))][:more]])
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]  # slots have any order
    weight = SparseWeight(shape, len(chosen))
    weight.groups = groups
    weight.select(chosen, torch.randn(len(chosen), generator=generator))
    return weight


class SparseTeacher:
    """y = W x + noise with correlated x. A student shall find out which 5 % of W are not zero, or which N of each M."""

    def __init__(self, seed: int, outputs: int = 20, inputs: int = 100, pattern: NMPattern | None = None) -> None:
        """Values of 0.3 to 1 of either sign at random places."""
        self.generator = torch.Generator().manual_seed(seed)
        n = outputs * inputs
        if pattern is None:
            self.support = torch.randperm(n, generator=self.generator)[: n // 20]
        else:
            groups = Groups.along(pattern, (outputs, inputs), 1)
            self.support = groups.best(torch.rand(n, generator=self.generator))
        self.k = len(self.support)
        size = 0.3 + 0.7 * torch.rand(self.k, generator=self.generator)
        sign = torch.randint(0, 2, (self.k,), generator=self.generator) * 2 - 1
        self.weight = torch.zeros(n).scatter_(0, self.support, size * sign).view(outputs, inputs)
        distance = torch.arange(inputs).unsqueeze(0) - torch.arange(inputs).unsqueeze(1)
        self.mixing = torch.linalg.cholesky(0.6 ** distance.abs().float())

    def batch(self, size: int = 16) -> tuple[Tensor, Tensor]:
        """Inputs (size, inputs) and noisy outputs (size, outputs)."""
        x = torch.randn(size, self.weight.shape[1], generator=self.generator) @ self.mixing.T
        return x, x @ self.weight.T + torch.randn(size, self.weight.shape[0], generator=self.generator)

    def recovered(self, weight: SparseWeight) -> float:
        """Share of the support that is active in a weight."""
        return len(set(weight.long_indices.tolist()) & set(self.support.tolist())) / self.k


def recover(
    topology: str,
    seed: int,
    steps: int = 1000,
    pattern: NMPattern | None = None,
    implementation: Any = None,
    **settings: Any,
) -> float:
    """Share of a teacher's support that a student of the same density, or pattern, has found."""
    teacher = SparseTeacher(seed, pattern=pattern)
    shape = tuple(teacher.weight.shape)
    if pattern is None:
        student = random_weight(shape, teacher.k, 1000 + seed)  # else it would start on the support
    else:
        student = patterned(shape, 1, pattern, 1000 + seed)
    rate = 0.02 if pattern is None else 0.01  # more weights, longer steps
    optimizer = torch.optim.SGD([student.values], lr=rate, momentum=0.9, weight_decay=5e-4)
    rule = implementation or SPARSITY.row(topology).implementation
    rule = rule(total_steps=steps, update_interval=20, **settings)
    training = SparseTraining({"w": student}, optimizer, rule, seed=seed)
    for _ in range(steps):
        x, y = teacher.batch()
        loss = (x @ student.dense().T - y).square().sum(1).mean() / 2
        loss.backward()
        optimizer.step()
        training.step()
        optimizer.zero_grad()
    return teacher.recovered(student)


def share(planted: str, name: str, seed: int) -> float:
    """Of the teacher's weights, found by a topology, or by BiDST with a part changed."""
    pattern = PLANTED[planted]
    if name in TOPOLOGIES:
        return recover(name, seed, pattern=pattern)
    implementation, settings = CONTROLS[name]
    return recover("bidst", seed, pattern=pattern, implementation=implementation, **settings)


def table(runs: dict[str, float]) -> str:
    """Means, and the smallest and largest, over the seeds, in per cent."""
    rows = []
    for name in (*TOPOLOGIES, *PARTS):
        cells = []
        for planted in PLANTED:
            shares = [100 * found for key, found in runs.items() if key.split("|")[:2] == [planted, name]]
            cells.append(f"{mean(shares):.1f} ({min(shares):.0f} to {max(shares):.0f})" if shares else "")
        rows.append([name, *cells])
    return markdown(["found, %", *PLANTED], rows)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "planted")
    made.add_argument("--seeds", type=at_least_one, default=10)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    path: Path = arguments.output / "runs.json"
    runs: dict[str, float] = read_json(path, {})
    for planted in PLANTED:
        for name in TOPOLOGIES if PLANTED[planted] else (*TOPOLOGIES, *PARTS):
            for seed in range(arguments.seeds):
                if (key := f"{planted}|{name}|{seed}") not in runs:
                    runs[key] = share(planted, name, seed)
            write_json(path, runs)
    write_table(arguments.output / "table.md", table(runs))


if __name__ == "__main__":
    main()
