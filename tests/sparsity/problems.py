"""Small problems for sparse training with a known answer."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.training.engine import SparseTraining


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
