"""A method of one's own is a class and a row."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from hf_efficient import SAMArguments
from hf_efficient.methods import OPTIMIZATION
from hf_efficient.methods.row import Method
from hf_efficient.optimization.engine.perturbation import Weights
from hf_efficient.optimization.engine.variant import Batch, Variant
from hf_efficient.optimization.loop.perturbing_optimizer import PerturbingOptimizer
from tests.optimization.loop.loops import network, steps, values
from tests.optimization.training.trainers import trained


class FixedVariant(Variant):
    """w + ρ z / ‖z‖, z all ones: a fixed direction instead of a gradient."""

    idle_reason = "there is no weight."

    def perturbed(
        self, weights: Weights, batch: Batch, rho: float, measure: bool = False
    ) -> AbstractContextManager[object]:
        z = {p: torch.ones_like(p) for p in weights.parameters}
        return weights.moved(weights.pack(z), rho, measure)


class Fixed(PerturbingOptimizer):
    method = "fixed"


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Method("fixed", "along a fixed direction", f"{__name__}:FixedVariant")
    monkeypatch.setattr(OPTIMIZATION, "methods", (*OPTIMIZATION.methods, own))
    monkeypatch.setitem(own.__dict__, "implementation", FixedVariant)


def test_the_trainer_runs_it(tmp_path: Path) -> None:
    trainer = trained(tmp_path, SAMArguments("fixed", diagnostics_steps=1), logging_steps=1, logging_strategy="steps")
    assert trainer.state.log_history[0]["sam_distance"] == pytest.approx(0.05, rel=1e-3)


def test_its_torch_optimizer_is_two_lines() -> None:
    moved, still = network(), network()
    steps(moved, Fixed(moved.parameters(), torch.optim.SGD, lr=0.1), 2)
    steps(still, torch.optim.SGD(still.parameters(), lr=0.1), 2)
    assert not all(torch.equal(a, b) for a, b in zip(values(moved), values(still)))
