"""Torch optimizers that are deep-copied or pickled, with the model: they go on, or are refused."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_efficient import SAM
from tests.optimization.loop.loops import CLASSES, network, same, step, values

WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda what: pickle.loads(pickle.dumps(what)),
}


def _trained(cls: Any) -> tuple[Any, Any]:
    net = network()
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    for number in range(3):
        step(net, opt, number)
    return net, opt


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_copy_goes_on_as_the_original(cls: Any, way: str) -> None:
    net, opt = _trained(cls)
    copied_net, copied = WAYS[way]((net, opt))
    before, random = values(net), torch.get_rng_state()
    for number in range(3, 6):
        step(copied_net, copied, number)
    assert same(values(net), before)
    torch.set_rng_state(random)
    for number in range(3, 6):
        step(net, opt, number)
    assert same(values(net), values(copied_net))
    assert not same(values(net), before)


def test_a_copy_is_watched_too() -> None:
    net, opt = copy.deepcopy(_trained(SAM))
    x = torch.ones(2, 8)
    net(x).sum().backward()
    with pytest.raises(ValueError, match="was not called since the last step"):
        opt.step()
    opt.perturb()
    with pytest.raises(ValueError, match="while the weights are perturbed"):
        opt.base.step()


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")  # torch says it of its own optimizers, too
def test_a_scheduler_is_copied_with_its_optimizer() -> None:
    net, opt = _trained(SAM)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
    net, opt, scheduler = copy.deepcopy((net, opt, scheduler))
    step(net, opt, 0)
    scheduler.step()
    assert opt.base.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", CLASSES)
def test_perturbed_weights_are_not_copied(cls: Any, way: str) -> None:
    net, opt = _trained(cls)
    opt.perturb(lambda: net(torch.ones(2, 8)).square().sum())
    with pytest.raises(ValueError, match=r"restore\(\) first"):
        WAYS[way]((net, opt))
