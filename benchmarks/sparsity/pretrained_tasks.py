"""What pretrained networks learn while they become sparse: data, networks, layers and how long."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.models.dinov2_layers import Dinov2Layers, garments
from benchmarks.models.minilm_top import MiniLMTop, hidden_states
from benchmarks.sparsity.tasks import Data, mlp, words


@dataclass(frozen=True)
class Task:
    """What is trained.

    Args:
        data: training inputs and classes, test inputs and classes.
        network: the pretrained network with a new head.
        layers: regular expression of the layers that become sparse.
        steps: of training.
        batch: texts a step.
        interval: steps between two exchanges.
        rates: learning rates tried.
    """

    data: Callable[[], Data]
    network: Callable[[], nn.Module]
    layers: str
    steps: int = 300
    batch: int = 16
    interval: int = 10
    rates: tuple[float, ...] = (1e-3, 5e-4, 2e-3, 4e-3, 8e-3)


@functools.cache
def newsgroups() -> Data:
    """Words of the newsgroups."""
    return words("newsgroups", 2000)()


def odd_half() -> Data:
    """The newsgroups of odd numbers."""
    x, y, x_test, y_test = newsgroups()
    here, there = y % 2 == 1, y_test % 2 == 1
    return x[here], y[here] // 2, x_test[there], y_test[there] // 2


@functools.cache
def even_network() -> nn.Module:
    """An MLP that has learned the newsgroups of even numbers."""
    with torch.random.fork_rng(devices=[]):  # whoever asks first shall find its random numbers as it left them
        torch.manual_seed(0)
        return learned_even()


def learned_even() -> nn.Module:
    """Train it."""
    x, y, _, _ = newsgroups()
    x, y = x[y % 2 == 0], y[y % 2 == 0] // 2
    network = mlp(2000, 256, 256, 10)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(5)
    for _ in range(600):
        batch = torch.randint(len(x), (64,), generator=generator)
        F.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def moved() -> nn.Module:
    """The same with a new head."""
    network: nn.Module = copy.deepcopy(even_network())
    network[4] = nn.Linear(256, 10)  # type: ignore[operator]
    return network


def minilm(name: str, classes: int) -> Task:
    """MiniLM's top two layers on one of its data sets."""
    layers = r"layers\..*(query|key|value|dense)"
    return Task(functools.partial(hidden_states, name), functools.partial(MiniLMTop, classes), layers)


TASKS = {
    "moved": Task(odd_half, moved, "[02]", steps=400, batch=64, interval=20, rates=(2e-3, 1e-3, 4e-3, 8e-3)),
    "newsgroups": minilm("newsgroups", 20),
    "rotten_tomatoes": minilm("rotten_tomatoes", 2),
    "r52": minilm("reuters_r52", 52),
    "garments": Task(
        garments,
        functools.partial(Dinov2Layers, 10),
        r"layers\..*(_proj|fc\d)",
        steps=100,
        interval=5,
        rates=(1e-3, 6e-5, 2.5e-4, 4e-3, 8e-3),
    ),
}
