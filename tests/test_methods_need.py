"""What a row says that its method needs is what the method asks for, and no other method asks for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from hf_efficient import SAMArguments, TokenPrunerConfig, reduce_tokens
from hf_efficient.methods import OPTIMIZATION, REPRESENTATION, SPARSITY, VIDEO
from hf_efficient.optimization.engine.perturbation import Weights
from hf_efficient.optimization.engine.variant import new_variant
from hf_efficient.sparsity.topology.base import Topology


@pytest.mark.parametrize("method", REPRESENTATION.names)
def test_importance_changes_the_tokens_of_methods_that_need_it(method: str) -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(1, 48, 16, generator=rng)
    config = TokenPrunerConfig(method, budget=12)
    reduced = [reduce_tokens(features, config, torch.rand(1, 48, generator=rng) ** 4).tokens for _ in range(2)]
    changed = not torch.equal(*reduced)
    assert changed == ("importance" in REPRESENTATION.row(method).needs)


class Asked:
    """A batch, and an optimizer, that note what a variant asks of them."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self.parameter, self.asked = parameter, set[str]()

    def gradient(self) -> dict[torch.Tensor, torch.Tensor]:
        self.asked.add("first pass")
        return self.kept_gradients()

    def loss(self, fraction: float) -> float:
        self.asked.add("losses")
        return 1.0

    @contextmanager
    def at_higher_loss(self, mirror: Any, fraction: float) -> Iterator[None]:
        self.asked.add("losses")
        yield

    def kept_gradients(self) -> dict[torch.Tensor, torch.Tensor]:
        return {self.parameter: torch.ones_like(self.parameter)}

    def optimizer(self) -> torch.optim.Optimizer:
        self.asked.add("momentum")
        return torch.optim.SGD([self.parameter], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("method", OPTIMIZATION.names)
def test_a_variant_asks_for_what_its_row_says_and_for_nothing_else(method: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    batch = Asked(parameter)
    variant = new_variant(SAMArguments(method), batch.optimizer)
    for step in range(2):
        variant.step = step
        with variant.perturbed(Weights([parameter]), batch, 0.1):
            parameter.grad = torch.ones_like(parameter)
    assert batch.asked == set(OPTIMIZATION.row(method).needs)


@pytest.mark.parametrize("method", SPARSITY.names)
def test_topologies_that_need_gradients_read_them(method: str) -> None:
    row = SPARSITY.row(method)
    reads = row.implementation.reads_gradient is not Topology.reads_gradient
    assert reads == ("gradient" in row.needs)


@pytest.mark.parametrize("method", VIDEO.names)
def test_scores_change_what_is_trained_where_they_are_needed(method: str) -> None:
    rng = np.random.default_rng(0)
    assignment = VIDEO.row(method).implementation()
    labels = [assignment.labels(rng.random((8, 6)), 4, "count") for _ in range(2)]
    assert (not np.array_equal(*labels)) == ("scores" in VIDEO.row(method).needs)
