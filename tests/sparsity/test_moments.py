"""What an optimizer remembers of weights that moved."""

import pytest
import torch
from torch import nn

from hf_efficient.sparsity import moments
from hf_efficient.sparsity.weight import SparseWeight
from tests.sparsity.problems import random_weight


def test_moments_of_moved_weights_are_new_and_of_others_untouched() -> None:
    weight = random_weight((5, 5), 6, 0)
    optimizer = torch.optim.AdamW([weight.values], lr=0.1)
    weight.values.grad = torch.arange(1.0, 7.0)
    optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[weight.values].items()}
    moments.forget(optimizer, weight.values, torch.tensor([1, 4]))
    after = optimizer.state[weight.values]
    stay = torch.tensor([0, 2, 3, 5])
    assert after["exp_avg"][[1, 4]].tolist() == [0, 0]
    assert torch.equal(after["exp_avg"][stay], before["exp_avg"][stay])
    assert torch.allclose(after["exp_avg_sq"][[1, 4]], before["exp_avg_sq"][stay].mean())
    assert torch.equal(after["exp_avg_sq"][stay], before["exp_avg_sq"][stay])
    assert float(after["step"]) == float(before["step"]) == 1
    assert weight.values.grad.tolist() == [1, 0, 3, 4, 0, 6]


def test_a_grown_weight_does_not_burst_under_adam() -> None:
    """Same gradients for all; a zeroed second moment would make the steps of a new weight several times too long."""
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
    new = torch.arange(16)
    moments.forget(optimizer, weight.values, new)
    moved = steps(30)
    assert float(moved[:16].mean()) < 1.3 * float(moved[16:].mean())
    optimizer.state[weight.values]["exp_avg_sq"][new] = 0.0
    moved = steps(30)
    assert float(moved[:16].mean()) > 2 * float(moved[16:].mean())


def test_pace_is_the_mean_step_of_a_unit_gradient() -> None:
    for make, expected in ((torch.optim.SGD, 0.1), (torch.optim.Adam, 0.1 / 3), (torch.optim.Adagrad, 0.1 / 3)):
        parameter = nn.Parameter(torch.zeros(8))
        optimizer = make([parameter], lr=0.1)
        parameter.grad = torch.full((8,), 3.0)
        optimizer.step()
        assert moments.pace(optimizer, parameter) == pytest.approx(expected, rel=1e-5)
        if make is not torch.optim.SGD:
            assert float(parameter.detach().abs().mean()) == pytest.approx(expected * 3, rel=1e-5)
