"""An MLP over word counts: ten of the 20 newsgroups, then the other ten."""

import functools

from torch import Tensor, nn

from benchmarks.optimization.two_tasks import Pair, halves
from benchmarks.sparsity.tasks import words

COUNTED = 2000  # words


class MLP(nn.Module):
    """(B, inputs) -> (B, classes): two hidden layers of 256."""

    def __init__(self, classes: int, inputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


_TEXTS = functools.cache(words("newsgroups", COUNTED))
WORDS = Pair(lambda: halves(_TEXTS, 0), lambda: halves(_TEXTS, 1), functools.partial(MLP, inputs=COUNTED))
