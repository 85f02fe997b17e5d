"""Networks that learn one task and then another; what of the first is left after rounding, pruning, and the second.

Nothing is trained between the first task and its rounding or pruning. The second task gets a head of its own; all else
of the network goes on learning, by plain AdamW whatever method trained the first.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from benchmarks.models.minilm_top import MiniLMTop, below_top, hidden_states
from benchmarks.optimization.sam_tasks import accuracy, loss_of
from benchmarks.sparsity.tasks import Data, fashion, held_back, words
from hf_efficient import prune_wanda
from hf_efficient.optimization.loop.perturbing_optimizer import PerturbingOptimizer
from hf_efficient.optimization.sharpness import sharpness

BITS = (8, 4, 3)
PRUNED = (0.5, 0.7, 0.8, 0.9)
#: Remedies of forgetting, all on the plain first task: what the second is trained with.
REMEDIES = ("a third of the rate", "L2 to the start", "averaged (WiSE-FT)")
MINILM_TOKENS = 16  # of a post: half the time of 32
PULL, SHARE = 0.01, 0.5  # of L2 to the start, and of the second network in the average


class WordsMLP(nn.Module):
    """(B, 2000) word counts -> (B, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2000, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class ImageViT(nn.Module):
    """(B, 1, 28, 28) -> (B, classes): 16 patches of 7 x 7, 48 wide, two layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
        config = ViTConfig(image_size=28, patch_size=7, num_channels=1, **sizes)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.vit(x).last_hidden_state.mean(1))


@dataclass(frozen=True)
class Pair:
    """Two tasks for one network, which has all that is task-specific in `head`.

    Args:
        first: training inputs and classes, test inputs and classes.
        second: the same.
        network: for the classes of the first.
        rate: of AdamW.
        steps: on each task.
        batch: rows a step.
    """

    first: Callable[[], Data]
    second: Callable[[], Data]
    network: Callable[[int], Any]
    rate: float = 1e-3
    steps: int = 400
    batch: int = 32


@functools.cache
def halves(load: Callable[[], Data], odd: int) -> Data:
    """The classes of even or odd numbers of a data set, numbered anew."""
    x, y, x_test, y_test = load()
    here, there = y % 2 == odd, y_test % 2 == odd
    return x[here], y[here] // 2, x_test[there], y_test[there] // 2


@functools.cache
def _minilm() -> Data:
    """States of the first `MINILM_TOKENS` tokens of newsgroup posts below MiniLM's top layer."""
    x, y, x_test, y_test = hidden_states("newsgroups")
    return below_top(x[:, :MINILM_TOKENS]), y, below_top(x_test[:, :MINILM_TOKENS]), y_test


_WORDS, _IMAGES = functools.cache(words("newsgroups", 2000)), functools.cache(fashion(6000, (1, 28, 28)))
PAIRS = {
    "words": Pair(lambda: halves(_WORDS, 0), lambda: halves(_WORDS, 1), WordsMLP),
    "images": Pair(lambda: halves(_IMAGES, 0), lambda: halves(_IMAGES, 1), ImageViT),
    "minilm": Pair(
        lambda: halves(_minilm, 0), lambda: halves(_minilm, 1), functools.partial(MiniLMTop, layers=1), rate=5e-4,
        batch=16, steps=120,
    ),
}  # fmt: skip


def percent_right(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy in percent, in evaluation mode."""
    return 100 * accuracy(net.eval(), x, y)


def batches(pair: Pair, x: Tensor, seed: int, steps: int) -> Iterator[Tensor]:
    """Rows of every step."""
    generator = torch.Generator().manual_seed(seed + 1000)
    for _ in range(steps):
        yield torch.randint(len(x), (pair.batch,), generator=generator)


def train(net: Any, pair: Pair, x: Tensor, y: Tensor, optimizer: Any, seed: int, steps: int, pull: float = 0.0) -> None:
    """Train all weights under a cosine; `pull` draws them to where they began, but for the head."""
    start = {name: p.detach().clone() for name, p in net.named_parameters() if not name.startswith("head.")}
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for rows in batches(pair, x, seed, steps):
        loss = functools.partial(loss_of, net, x[rows], y[rows])
        if isinstance(optimizer, PerturbingOptimizer):
            optimizer.perturb(loss)
        away = sum((p - start[n]).square().sum() for n, p in net.named_parameters() if n in start) if pull else 0.0
        (loss() + pull * away).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def inner_layers(net: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers but the head."""
    return {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear) and not n.startswith("head")}


def rounded(weight: Tensor, bits: int) -> Tensor:
    """To the nearest of 2^bits - 1 levels of each row, the outermost at its largest size; no calibration."""
    levels = 2 ** (bits - 1) - 1
    step = (weight.abs().amax(1, keepdim=True) / levels).clamp_min(1e-12)
    return (weight / step).round() * step


def without_smallest(weight: Tensor, share: float) -> Tensor:
    """The smallest weights of a matrix set to zero."""
    count = round(share * weight.numel())
    bound = weight.abs().flatten().kthvalue(count).values
    return weight * (weight.abs() > bound)


def some_of(x: Tensor, count: int) -> Tensor:
    """Rows by chance, the same every time; data sets are in an order."""
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(7))[:count]]


@torch.no_grad()
def compressed(net: Any, x: Tensor) -> Iterator[tuple[str, Any]]:
    """(name, copy) of all ways to make a trained network smaller; `x` calibrates Wanda."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        **{f"{bits} bits": functools.partial(rounded, bits=bits) for bits in BITS},
        **{f"{share:.0%} smallest": functools.partial(without_smallest, share=share) for share in PRUNED},
    }
    for name, change in changes.items():
        made = copy.deepcopy(net)
        for layer in inner_layers(made).values():
            layer.weight.copy_(change(layer.weight))
        yield name, made
    for share in PRUNED:
        made = copy.deepcopy(net).eval()
        prune_wanda(made, [some_of(x, 128)], share, target_modules=list(inner_layers(made)))
        yield f"{share:.0%} Wanda", made


def after_second(net: Any, pair: Pair, second: Data, first: Data, seed: int, remedy: str = "") -> tuple[float, float]:
    """Percent right of the first task and of the second, after the second was learned."""
    x, y, x_second, y_second = second
    made, head = copy.deepcopy(net), net.head
    torch.manual_seed(seed + 2000)
    made.head = nn.Linear(head.in_features, int(y_second.max()) + 1)
    rate = pair.rate / (3 if remedy == "a third of the rate" else 1)
    pull = PULL if remedy == "L2 to the start" else 0.0
    train(made, pair, x, y, torch.optim.AdamW(made.parameters(), rate), seed + 3000, pair.steps, pull)
    if remedy == "averaged (WiSE-FT)":
        with torch.no_grad():
            for name, p in made.named_parameters():
                if not name.startswith("head."):
                    p.lerp_(net.get_parameter(name), 1 - SHARE)
    there = percent_right(made, x_second, y_second)
    made.head = head
    return percent_right(made, first[2], first[3]), there


def measure(
    pair: Pair, method: Callable[..., Any], rho: float, rate: float, length: float, seed: int, tuning: bool,
    remedies: bool,
) -> dict[str, float]:  # fmt: skip
    """Train the first task and measure everything, on held-back data if tuning.

    Args:
        pair: the tasks.
        method: makes an optimizer, as those of `sam_tasks.METHODS`.
        rho: distance of its perturbation.
        rate: factor on the pair's learning rate.
        length: factor on the pair's steps.
        seed: of network, batches and second task.
        tuning: whether held-back training data take the place of the test set.
        remedies: whether the second task is also learned under each of `REMEDIES`.
    """
    first, second = (held_back(task()) if tuning else task() for task in (pair.first, pair.second))
    torch.manual_seed(seed)
    net = pair.network(int(first[1].max()) + 1)
    optimizer = method(list(net.parameters()), torch.optim.AdamW, rho=rho, lr=rate * pair.rate)
    train(net, pair, first[0], first[1], optimizer, seed, round(length * pair.steps))
    found = {"whole": percent_right(net, first[2], first[3])}
    found |= {name: percent_right(made, first[2], first[3]) for name, made in compressed(net, first[0])}
    some = (some_of(first[0], 1000), some_of(first[1], 1000))
    found["sharpness"] = sharpness(net, [some], 0.1, loss_of=lambda net, batch: loss_of(net, *batch))
    for remedy in ("", *(REMEDIES if remedies else ())):
        name = f", {remedy}" if remedy else ""
        found[f"first after second{name}"], found[f"second{name}"] = after_second(
            net, pair, second, first, seed, remedy
        )
    return found
