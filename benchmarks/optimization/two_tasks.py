"""Networks that learn one task and then another; what of the first is left after rounding, pruning, and the second.

Nothing is trained between the first task and its rounding or pruning. The second task gets a head of its own; all else
that the first task trained goes on learning, by plain AdamW whatever method trained the first. Adapters are merged into
their weights before these are rounded, pruned or averaged. The pairs of tasks are in `pairs`, a file for each network.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from benchmarks.optimization.sam_tasks import accuracy, loss_of
from benchmarks.sparsity.tasks import Data, held_back
from hf_efficient import prune_wanda
from hf_efficient.optimization.loop.perturbing_optimizer import PerturbingOptimizer

BITS = (8, 4, 3)
PRUNED = (0.5, 0.7, 0.8, 0.9)
#: Remedies of forgetting, all on the plain first task: what the second is trained with.
REMEDIES = ("a third of the rate", "L2 to the start", "averaged (WiSE-FT)")
HEADS = ("head", "lm_head")
PULL, SHARE = 0.01, 0.5  # of L2 to the start, and of the second network in the average


def percent_right(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy in percent, in evaluation mode."""
    return 100 * accuracy(net.eval(), x, y)


@dataclass(frozen=True)
class Pair:
    """Two tasks for one network.

    Args:
        first: training inputs and classes, test inputs and classes.
        second: the same, if there is one.
        network: for the classes of the first; its layer `head` is neither rounded nor pruned.
        rate: of AdamW.
        steps: on each task.
        batch: rows a step.
        tuning_seeds: how many choose the dials; with none they are those of everybody.
        bits: to which weights are rounded.
        pruned: shares that are set to zero.
        own_heads: whether the second task gets a head of its own.
        low_rank: whether LoRA trains, whose merged weight may be perturbed.
        score: of a network, inputs and classes; more is better.
        more: other measures, of the network behind the first task and its test inputs and classes.
        begin: called with network, optimizer and steps before the first task is trained.
    """

    first: Callable[[], Data]
    second: Callable[[], Data] | None
    network: Callable[[int], Any]
    rate: float = 1e-3
    steps: int = 400
    batch: int = 32
    tuning_seeds: int = 2
    bits: tuple[int, ...] = BITS
    pruned: tuple[float, ...] = PRUNED
    own_heads: bool = True
    low_rank: bool = False
    score: Callable[[Any, Tensor, Tensor], float] = percent_right
    more: Callable[[Any, Tensor, Tensor], dict[str, float]] | None = None
    begin: Callable[[Any, Any, int], object] | None = None


@functools.cache
def halves(load: Callable[[], Data], odd: int) -> Data:
    """The classes of even or odd numbers of a data set, numbered anew."""
    x, y, x_test, y_test = load()
    here, there = y % 2 == odd, y_test % 2 == odd
    return x[here], y[here] // 2, x_test[there], y_test[there] // 2


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """What is trained."""
    return [p for p in net.parameters() if p.requires_grad]


def merged(net: Any) -> Any:
    """A copy with its adapters merged into the weights."""
    made = copy.deepcopy(net)
    for name, child in list(made.named_children()):
        if isinstance(child, PeftModel):
            setattr(made, name, child.merge_and_unload())
    return made


def batches(pair: Pair, x: Tensor, seed: int, steps: int) -> Iterator[Tensor]:
    """Rows of every step."""
    generator = torch.Generator().manual_seed(seed + 1000)
    for _ in range(steps):
        yield torch.randint(len(x), (pair.batch,), generator=generator)


def train(net: Any, pair: Pair, x: Tensor, y: Tensor, optimizer: Any, seed: int, steps: int, pull: float = 0.0) -> None:
    """Train all weights under a cosine; `pull` draws them to where they began, but for the head."""
    start = {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad and not n.startswith("head.")}
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
    return {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] not in HEADS}


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
def compressed(net: Any, pair: Pair, x: Tensor) -> Iterator[tuple[str, Any]]:
    """(name, copy) of all ways to make a trained network smaller; `x` calibrates Wanda."""
    whole = merged(net)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        **{f"{bits} bits": functools.partial(rounded, bits=bits) for bits in pair.bits},
        **{f"{share:.0%} smallest": functools.partial(without_smallest, share=share) for share in pair.pruned},
    }
    for name, change in changes.items():
        made = copy.deepcopy(whole)
        for layer in inner_layers(made).values():
            layer.weight.copy_(change(layer.weight))
        yield name, made
    for share in pair.pruned:
        made = copy.deepcopy(whole).eval()
        prune_wanda(made, [some_of(x, 128)], share, target_modules=list(inner_layers(made)))
        yield f"{share:.0%} Wanda", made


def after_second(net: Any, pair: Pair, second: Data, first: Data, seed: int, remedy: str = "") -> tuple[float, float]:
    """Scores of the first task and of the second, after the second was learned."""
    x, y, x_second, y_second = second
    made = copy.deepcopy(net)
    torch.manual_seed(seed + 2000)
    if pair.own_heads:
        made.head = nn.Linear(net.head.in_features, int(y_second.max()) + 1)
    rate = pair.rate / (3 if remedy == "a third of the rate" else 1)
    pull = PULL if remedy == "L2 to the start" else 0.0
    train(made, pair, x, y, torch.optim.AdamW(trainable(made), rate), seed + 3000, pair.steps, pull)
    if remedy == "averaged (WiSE-FT)":
        made = averaged(made, net)
    there = pair.score(made, x_second, y_second)
    if pair.own_heads:
        made.head = net.head
    return pair.score(made, first[2], first[3]), there


@torch.no_grad()
def averaged(later: Any, before: Any) -> Any:
    """A copy between two networks, adapters merged; heads of different tasks stay the later one's."""
    made, start = merged(later), dict(merged(before).named_parameters())
    for name, p in made.named_parameters():
        if p.shape == start[name].shape and not name.startswith("head."):
            p.lerp_(start[name], 1 - SHARE)
    return made


def measure(
    pair: Pair, make: Callable[..., Any], rho: float, rate: float, length: float, seed: int, tuning: bool,
    remedies: bool,
) -> dict[str, float]:  # fmt: skip
    """Train the first task and measure everything, on held-back data if tuning.

    Args:
        pair: the tasks.
        make: the optimizer, of network, rho and learning rate.
        rho: distance of its perturbation.
        rate: factor on the pair's learning rate.
        length: factor on the pair's steps.
        seed: of network, batches and second task.
        tuning: whether held-back training data take the place of the test set.
        remedies: whether the second task is also learned under each of `REMEDIES`.
    """
    first = held_back(pair.first()) if tuning else pair.first()
    torch.manual_seed(seed)
    net, steps = pair.network(int(first[1].max()) + 1), round(length * pair.steps)
    optimizer = make(net, rho, rate * pair.rate)
    if pair.begin is not None:
        pair.begin(net, optimizer, steps)
    train(net, pair, first[0], first[1], optimizer, seed, steps)
    found = {"whole": pair.score(net, first[2], first[3])}
    found |= {name: pair.score(made, first[2], first[3]) for name, made in compressed(net, pair, first[0])}
    if pair.more is not None:
        found |= pair.more(net, first[2], first[3])
    if pair.second is None:
        return found
    second = held_back(pair.second()) if tuning else pair.second()
    for remedy in ("", *(REMEDIES if remedies else ())):
        name = f", {remedy}" if remedy else ""
        found[f"first after second{name}"], found[f"second{name}"] = after_second(
            net, pair, second, first, seed, remedy
        )
    return found
