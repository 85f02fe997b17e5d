"""The top layer of a pretrained MiniLM-L6, whole or by an adapter: ten of the 20 newsgroups, then the other ten.

Adapters train about 2 % of the layer's weights as well as the head. A BiDST delta's support moves in the first task and
rests in the second.
"""

import functools
from dataclasses import replace
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from benchmarks.models.minilm_top import MiniLMTop, below_top, hidden_states
from benchmarks.optimization.two_tasks import Pair, halves
from benchmarks.sparsity.sparse_adapters import config_of
from benchmarks.sparsity.tasks import Data
from hf_efficient import train_sparsely

TOKENS = 16  # of a post: half the time of 32
BUDGET = 2.0  # percent of the weights that an adapter trains


class Adapted(nn.Module):
    """(B, T, 1 + 384) -> (B, classes): MiniLM's top layer behind an adapter, and a head that trains whole."""

    def __init__(self, classes: int, method: str) -> None:
        super().__init__()
        top = MiniLMTop(classes, 1)
        self.head, top.head = top.head, nn.Identity()  # type: ignore[assignment]
        config = config_of(method, BUDGET, torch.initial_seed())
        config.modules_to_save = None  # the head is not in it
        self.body = get_peft_model(top, config)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@functools.cache
def posts() -> Data:
    """States of the first `TOKENS` tokens of newsgroup posts below MiniLM's top layer."""
    x, y, x_test, y_test = hidden_states("newsgroups")
    return below_top(x[:, :TOKENS]), y, below_top(x_test[:, :TOKENS]), y_test


MINILM = Pair(
    lambda: halves(posts, 0), lambda: halves(posts, 1), functools.partial(MiniLMTop, layers=1), rate=5e-4, batch=16,
    steps=120,
)  # fmt: skip


def by_adapter(method: str, rate: float, **more: Any) -> Pair:
    """The same with an adapter, half as long, and with fewer measures."""
    network = functools.partial(Adapted, method=method)
    return replace(MINILM, network=network, rate=rate, steps=60, bits=(4, 3), pruned=(0.8,), **more)


LORA = by_adapter("lora", 4e-3, low_rank=True, tuning_seeds=1)
SHIRA = by_adapter("shira", 1e-2, tuning_seeds=0)
BIDST = by_adapter(
    "bidst", 1e-2, tuning_seeds=0,
    begin=lambda net, optimizer, steps: train_sparsely(net.body, optimizer, steps),
)  # fmt: skip
