"""What is trained sparse from scratch: data, networks and how long."""

import argparse
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness.options import common_parser
from benchmarks.models.small_networks import SmallResNet, SmallViT
from examples import real_data

Data = tuple[Tensor, Tensor, Tensor, Tensor]  # training inputs and classes, test inputs and classes


@dataclass(frozen=True)
class Task:
    """What is trained: data, network, which layers become sparse, and for how long."""

    data: Callable[[], Data]
    network: Callable[[], nn.Module]
    sparse_layers: str  # regular expression over module names; the rest stays dense
    epochs: int
    batch: int = 128
    interval: int = 100


def fashion(train: int, shape: tuple[int, ...]) -> Callable[[], Data]:
    """The first `train` images and all test images, normalized."""

    def load() -> Data:
        parts: list[Tensor] = []
        for part, count in ((True, train), (False, 10_000)):
            pixels, classes = real_data.fashion_mnist(part)
            x = (torch.tensor(pixels[:count]).float() / 255 - 0.286) / 0.353
            parts += [x.view(-1, *shape), torch.tensor(classes[:count])]
        return parts[0], parts[1], parts[2], parts[3]

    return load


def words(name: str, size: int = 4000) -> Callable[[], Data]:
    """log(1 + count) of the `size` most frequent words of three letters or more, each text scaled to length 1."""

    def load() -> Data:
        texts = [getattr(real_data, name)(train) for train in (True, False)]
        counts = Counter(w for text in texts[0].texts for w in text.lower().split() if len(w) > 2)
        number = {word: i for i, (word, _) in enumerate(counts.most_common(size))}
        parts: list[Tensor] = []
        for part in texts:
            x = torch.zeros(len(part.texts), size)
            for row, text in enumerate(part.texts):
                found = np.array([number[w] for w in text.lower().split() if w in number], np.int64)
                x[row].index_add_(0, torch.from_numpy(found), torch.ones(len(found)))
            x = x.log1p()
            parts += [x / x.norm(dim=1, keepdim=True).clamp_min(1e-6) * 10, torch.from_numpy(part.labels)]
        return parts[0], parts[1], parts[2], parts[3]

    return load


def mlp(*sizes: int) -> nn.Module:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


TASKS = {
    "mlp": Task(fashion(30_000, (784,)), lambda: mlp(784, 300, 100, 10), "[02]", epochs=6),
    "resnet": Task(
        fashion(10_000, (1, 28, 28)), SmallResNet, r"stages\.(.*conv\d|[12]\.shortcut)", epochs=6, interval=50
    ),
    "vit": Task(fashion(10_000, (1, 28, 28)), SmallViT, r"layers\..*linear\d", epochs=12, interval=50),
    "r52": Task(words("reuters_r52"), lambda: mlp(4000, 256, 128, 52), "[02]", epochs=12, batch=64),
    "newsgroups": Task(words("newsgroups"), lambda: mlp(4000, 256, 128, 20), "[02]", epochs=10, batch=64),
}


def held_back(data: Data) -> Data:
    """Training data alone, divided: 15 % take the place of the test set."""
    x, y, _, _ = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    train, test = order[: int(0.85 * len(x))], order[int(0.85 * len(x)) :]
    return x[train], y[train], x[test], y[test]


def comparison_parser(
    doc: str | None, name: str, tasks: Iterable[str], methods: Iterable[str], sparsities: Sequence[float]
) -> argparse.ArgumentParser:
    """The options of a benchmark that trains methods on tasks: by default all, with five seeds."""
    made = common_parser(doc, name)
    made.add_argument("--tasks", nargs="+", default=list(tasks), choices=list(tasks))
    made.add_argument("--methods", nargs="+", default=list(methods), choices=list(methods))
    made.add_argument("--sparsities", nargs="+", type=float, default=sparsities)
    made.add_argument("--seeds", type=int, default=5)
    return made
