"""A small network, its batches and a plain loop's step, for the tests of the torch optimizers."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient import MSAM, S2SAM, SAM, ZOSAM, LookSAM
from hf_efficient.optimization.loop.perturbing_optimizer import PerturbingOptimizer

CLASSES: list[type[PerturbingOptimizer]] = [S2SAM, SAM, ZOSAM, LookSAM, MSAM]


def network(batch_norm: bool = False) -> Any:
    torch.manual_seed(0)
    middle: nn.Module = nn.BatchNorm1d(16) if batch_norm else nn.Dropout(0.3)
    return nn.Sequential(nn.Linear(8, 16), middle, nn.ReLU(), nn.Linear(16, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(12, 8, generator=generator), torch.randint(0, 3, (12,), generator=generator)


def step(net: nn.Module, opt: Any, number: int, spoil: float = 1.0) -> None:
    x, y = batch(number)
    loss = lambda: nn.functional.cross_entropy(net(x * spoil), y)
    if isinstance(opt, PerturbingOptimizer):
        opt.perturb(loss)
    loss().backward()
    opt.step()
    opt.zero_grad()


def loss_of(net: nn.Module, number: int) -> Tensor:
    x, y = batch(number)
    return nn.functional.cross_entropy(net(x), y)


def smooth() -> Any:
    """Without weights whose gradient is nothing but rounding, which Adam and its kin would blow up."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def steps(net: nn.Module, opt: Any, count: int, spoil: float = 1.0) -> None:
    for number in range(count):
        step(net, opt, number, spoil)


def values(net: nn.Module) -> list[Tensor]:
    return [v.detach().clone() for v in net.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))
