"""ZO-SAM with one direction takes the pass that asks a point as the step's own: the same training, for fewer passes."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient import SAMArguments, SAMTrainer
from hf_efficient.optimization.engine.variant import move_to_higher_loss
from hf_efficient.optimization.training.batch import AccumulatedBatch
from tests.optimization.training.trainers import bert, build, rows, trained

RANDOM, GUIDED = SAMArguments("zosam", rho=0.5), SAMArguments("zosam", rho=0.5, guided=True)
STEPS = 12


class Normed(nn.Module):
    """BatchNorm and dropout; counts its passes, with and without a graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.2)
        self.passes: list[bool] = []
        self.masks: list[torch.Tensor] = []

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        self.passes.append(torch.is_grad_enabled())
        self.masks.append(self.drop(torch.ones(64)))
        logits = self.last(self.drop(torch.relu(self.norm(self.first(x)))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def images() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(8, generator=generator), "labels": i % 3} for i in range(48)]


class Autocast(SAMTrainer):
    """Keeps its 16-bit copies of the weights from the first pass of a step to the last."""

    def compute_loss_context_manager(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16)


@contextmanager
def asked_before(window: AccumulatedBatch, mirror: Callable[[], None], fraction: float) -> Iterator[None]:
    """Two losses, and then the step: three passes forward, as everywhere but in a Trainer."""
    move_to_higher_loss(window, mirror, fraction)
    yield


@pytest.mark.parametrize("method", [RANDOM, GUIDED], ids=["random", "guided"])
@pytest.mark.parametrize(
    ("model", "data", "kwargs"),
    [(Normed, images, {}), (bert, rows, {}), (bert, rows, {"bf16": True}), (bert, rows, {"cls": Autocast}),
     (bert, rows, {"label_smoothing_factor": 0.1}), (bert, rows, {"activation_checkpointing": True})],
    ids=["BatchNorm", "dropout", "bf16", "autocast", "label smoothing", "checkpointing"],
)  # fmt: skip
def test_it_is_the_training_that_asks_first(
    model: Any, data: Any, kwargs: Any, method: SAMArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = trained(tmp_path, method, model(), data=data(), max_steps=STEPS, **kwargs)
    monkeypatch.setattr(AccumulatedBatch, "at_higher_loss", asked_before)
    theirs = trained(tmp_path, method, model(), data=data(), max_steps=STEPS, **kwargs)
    for (name, a), b in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, msg=name)


def test_two_passes_where_the_first_guess_holds_else_three(tmp_path: Path) -> None:
    for method in (RANDOM, GUIDED):
        model = trained(tmp_path, method, Normed(), data=images(), max_steps=STEPS).model
        assert model.norm.num_batches_tracked == STEPS
        asked, graphs = model.passes.count(False), model.passes.count(True)
        assert asked == STEPS
        assert STEPS < graphs < 2 * STEPS  # both happened
        ends = [i for i, graph in enumerate(model.passes) if not graph] + [len(model.passes)]
        for start, end in itertools.pairwise(ends):
            assert all(torch.equal(model.masks[start], mask) for mask in model.masks[start:end])


@pytest.mark.parametrize(
    "changes", [{"probe_fraction": 0.5}, {"probe_dropout": False}, {"num_queries": 2}, {"delta": 1e-3}]
)
def test_probes_of_another_kind_are_no_pass_of_the_step(changes: dict[str, Any], tmp_path: Path) -> None:
    method = SAMArguments("zosam", rho=0.5, **changes)
    model = trained(tmp_path, method, Normed(), data=images(), max_steps=3).model
    assert model.passes == ([False] * 2 * method.num_queries + [True]) * 3


def test_several_micro_batches_are_asked_together(tmp_path: Path) -> None:
    model = trained(tmp_path, RANDOM, Normed(), data=images(), max_steps=2, gradient_accumulation_steps=3).model
    assert model.passes == ([False] * 6 + [True] * 3) * 2


def test_the_trainer_gets_its_own_loss_function_back(tmp_path: Path) -> None:
    class Failing(SAMTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 2:
                raise RuntimeError("out of memory")
            return super().compute_loss(*args, **kwargs)

    trainer = build(tmp_path, RANDOM, Normed(), cls=Failing, data=images())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert "compute_loss" not in vars(trainer)
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())

    seen = []
    trainer = build(tmp_path, RANDOM, Normed(), data=images(), max_steps=2)
    stock = trainer.compute_loss

    def users(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return stock(*args, **kwargs)

    trainer.compute_loss = users
    trainer.train()
    assert len(seen) >= 4
    assert trainer.compute_loss is users
