"""Which optimizers are known, where they keep their momentum, and what is refused until it is declared."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.sparsity.planted import random_weight
from hf_efficient import optimizer_state
from hf_efficient.optimizer_state import roles
from hf_efficient.sparsity.sparse_weight import SparseWeight
from tests.optimizer_state.test_moved_weights import GALORE, MAKERS, step


def test_the_momentum_is_found_wherever_it_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(64, 96, generator=generator) for _ in range(8)]
    mean = torch.zeros(64, 96)
    for gradient in gradients:
        mean = 0.9 * mean + 0.1 * gradient
    for name, size, close in (
        ("Adam", 1, 1e-5),
        ("AdamW fused", 1, 1e-5),
        ("AdamW32bit", 1, 1e-5),
        ("AdamW8bit", 1, 0.02),
        ("SGD", 10, 1e-5),
        ("SGD8bit", 10, 0.02),
        ("S2SAM", 1, 1e-5),
    ):
        parameter = nn.Parameter(torch.zeros(64, 96))
        optimizer: Any = MAKERS[name]([parameter])
        assert optimizer_state.keeps_momentum(optimizer, optimizer.param_groups[0])
        assert optimizer_state.momenta(optimizer, [parameter]) == {}
        for gradient in gradients:
            step(optimizer, parameter, gradient)
        found = optimizer_state.momenta(optimizer, [parameter]).get(parameter)
        assert found is not None
        assert float((found - size * mean).norm() / (size * mean).norm()) < close, name
    for name in ("RMSprop8bit", "Adagrad", "AdamWScheduleFree", "Adafactor", "transformers Adafactor, own schedule"):
        optimizer = MAKERS[name]([nn.Parameter(torch.zeros(8))])
        assert not optimizer_state.keeps_momentum(optimizer, optimizer.param_groups[0]), name


def test_galores_momentum_is_projected_back() -> None:
    parameter = nn.Parameter(torch.zeros(12, 8))
    galore = pytest.importorskip("galore_torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = galore.GaLoreAdamW([{"params": [parameter], **GALORE}], lr=0.01)
    gradient = torch.outer(torch.arange(12.0), torch.arange(8.0))  # of rank one: nothing is lost
    step(optimizer, parameter, gradient)
    found = optimizer_state.momenta(optimizer, [parameter]).get(parameter)
    assert found is not None
    assert torch.allclose(found, 0.1 * 0.25 * gradient, atol=1e-4)
    with pytest.raises(ValueError, match="rank"):
        optimizer_state.check(optimizer, [parameter])


def test_an_optimizer_that_is_not_known_is_refused_until_it_is_declared() -> None:
    class Mine(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {"lr": 0.1})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p].setdefault("average", torch.zeros_like(p)).lerp_(p.grad, 0.1)

    class Plain(torch.optim.SGD):
        """Changes nothing of how steps are taken."""

    parameter = nn.Parameter(torch.zeros(8))
    optimizer_state.check(Plain([parameter], lr=0.1), [parameter])
    optimizer = Mine([parameter])
    with pytest.raises(ValueError, match=r"Mine.*declare"):
        optimizer_state.check(optimizer, [parameter])
    for other in (torch.optim.LBFGS([parameter]), _refused(parameter)):
        with pytest.raises(ValueError, match="is not known"):
            optimizer_state.check(other, [parameter])
    with pytest.raises(ValueError, match="'speed' is not known"):
        optimizer_state.declare(Mine, average="speed")
    optimizer_state.declare(Mine, average="momentum")
    try:
        optimizer_state.check(optimizer, [parameter])
        parameter.grad = torch.ones(8)
        optimizer.step()
        optimizer_state.forget(optimizer, parameter, torch.tensor([2]))
        assert optimizer.state[parameter]["average"].tolist() == pytest.approx([0.1, 0.1, 0, *[0.1] * 5])
        optimizer.state[parameter]["surprise"] = torch.zeros(8)
        with pytest.raises(ValueError, match="surprise"):
            optimizer_state.check(optimizer, [parameter])
    finally:
        del roles.KNOWN[roles.family(optimizer)]


def _refused(parameter: nn.Parameter) -> Any:
    return pytest.importorskip("bitsandbytes.optim").LAMB([parameter])


def test_moments_of_moved_weights_are_new_and_of_others_untouched() -> None:
    weight = random_weight((5, 5), 6, 0)
    optimizer = torch.optim.AdamW([weight.values], lr=0.1)
    weight.values.grad = torch.arange(1.0, 7.0)
    optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[weight.values].items()}
    optimizer_state.forget(optimizer, weight.values, torch.tensor([1, 4]))
    after = optimizer.state[weight.values]
    stay = torch.tensor([0, 2, 3, 5])
    assert after["exp_avg"][[1, 4]].tolist() == [0, 0]
    assert torch.equal(after["exp_avg"][stay], before["exp_avg"][stay])
    assert torch.allclose(after["exp_avg_sq"][[1, 4]], before["exp_avg_sq"][stay].mean())
    assert torch.equal(after["exp_avg_sq"][stay], before["exp_avg_sq"][stay])
    assert float(after["step"]) == float(before["step"]) == 1
    assert weight.values.grad.tolist() == [1, 0, 3, 4, 0, 6]


def test_a_second_moment_of_zero_would_make_a_new_weight_burst() -> None:
    """Why it is not zero."""
    weight = SparseWeight((1, 64), 32)
    optimizer = torch.optim.Adam([weight.values], lr=0.01)
    generator = torch.Generator().manual_seed(0)

    def steps(count: int) -> torch.Tensor:
        start = weight.values.detach().clone()
        for _ in range(count):
            weight.values.grad = torch.randn(32, generator=generator)
            optimizer.step()
        return (weight.values.detach() - start).abs()

    steps(500)
    optimizer.state[weight.values]["exp_avg_sq"][:16] = 0.0
    moved = steps(30)
    assert float(moved[:16].mean()) > 2 * float(moved[16:].mean())
