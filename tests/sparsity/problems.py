"""Small problems for sparse training with a known answer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_efficient.methods import SPARSITY
from hf_efficient.sparsity.pattern import Groups, NMPattern
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.training.engine import SparseTraining


def random_weight(shape: tuple[int, ...], k: int, seed: int) -> SparseWeight:
    generator = torch.Generator().manual_seed(seed)
    weight = SparseWeight(shape, k)
    indices = torch.randperm(weight.numel, generator=generator)[:k]
    weight.select(indices, 0.1 * torch.randn(k, generator=generator))
    return weight


def patterned(shape: tuple[int, ...], axis: int, pattern: NMPattern, seed: int, more: int = 0) -> SparseWeight:
    """A weight with N random active entries of each group, and `more` beyond them."""
    generator = torch.Generator().manual_seed(seed)
    groups = Groups.along(pattern, shape, axis)
    first = set(groups.best(torch.rand(SparseWeight(shape, 1).numel, generator=generator)).tolist())
    rest = [i for i in range(SparseWeight(shape, 1).numel) if i not in first]
    chosen = torch.tensor([*first, *rest[:: max(1, len(rest) // max(1, more))][:more]])
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]  # slots have any order
    weight = SparseWeight(shape, len(chosen))
    weight.groups = groups
    weight.select(chosen, torch.randn(len(chosen), generator=generator))
    return weight


class SparseTeacher:
    """y = W x + noise with correlated x. A student shall find out which 5 % of W are not zero, or which N of each M."""

    def __init__(self, seed: int, outputs: int = 20, inputs: int = 100, pattern: NMPattern | None = None) -> None:
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
        x = torch.randn(size, self.weight.shape[1], generator=self.generator) @ self.mixing.T
        return x, x @ self.weight.T + torch.randn(size, self.weight.shape[0], generator=self.generator)

    def recovered(self, weight: SparseWeight) -> float:
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


def train(
    weights: Mapping[str, SparseWeight],
    topology: Any,
    steps: int,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    each_step: Any = None,
    **settings: Any,
) -> SparseTraining:
    """Fit random targets with all weights; `each_step` sees the training after every step."""
    optimizer = optimizer or torch.optim.SGD([w.values for w in weights.values()], lr=0.05, momentum=0.9)
    training = SparseTraining(weights, optimizer, topology, **settings)
    generator = torch.Generator().manual_seed(7)
    targets = {name: torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    for _ in range(steps):
        noise = {name: 0.3 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
        bases = {name: torch.zeros(w.shape) for name, w in weights.items()}
        loss = sum((w.dense(bases[n]) - targets[n] - noise[n]).square().sum() for n, w in weights.items()) / 2
        loss.backward()
        optimizer.step()
        training.step()
        if each_step is not None:
            each_step(training)
        optimizer.zero_grad()
    return training
