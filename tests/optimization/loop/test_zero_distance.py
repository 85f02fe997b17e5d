"""A distance of zero, constant or for some steps of a schedule: training is plain, to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient import MSAM, S2SAM, SAM, ZOSAM, LookSAM

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "S2SAM": S2SAM,
    "SAM": SAM,
    "ZOSAM": ZOSAM,
    "LookSAM": LookSAM,
    "MSAM": MSAM,
    "guided ZOSAM": lambda *args, **kwargs: ZOSAM(*args, guided=True, **kwargs),
    "guided ZOSAM, m = 3": lambda *args, **kwargs: ZOSAM(*args, guided=True, num_queries=3, **kwargs),
}


def weights_after(make: Callable[..., Any] | None, rho: Any = 0.0, steps: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(steps, 16, 4), torch.randint(3, (steps, 16))
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    optimizer: Any = torch.optim.SGD(net.parameters(), **settings)
    if make is not None:
        optimizer = make(net.parameters(), torch.optim.SGD, rho, **settings)
    for t in range(steps):
        if make is not None:
            optimizer.perturb(lambda t=t: nn.functional.cross_entropy(net(x[t]), y[t]))
        nn.functional.cross_entropy(net(x[t]), y[t]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rho", [0.0, lambda step: 0.0], ids=["constant", "schedule"])
def test_training_is_plain(name: str, rho: Any) -> None:
    for ours, plain in zip(weights_after(OPTIMIZERS[name], rho), weights_after(None), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_schedule_may_begin_at_zero(name: str) -> None:
    def rho(step: int) -> float:
        return 0.5 * (step > 1)

    late = weights_after(OPTIMIZERS[name], rho)
    assert not all(torch.equal(a, b) for a, b in zip(late, weights_after(None), strict=True))
    early = weights_after(OPTIMIZERS[name], rho, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(early, weights_after(None, steps=2), strict=True))
