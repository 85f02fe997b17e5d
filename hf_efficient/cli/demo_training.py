"""The second and the first budget in the demonstration: flat minima and sparse weights, on pictures of garments."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from hf_efficient.budget.measure import measure
from hf_efficient.extras import extra
from hf_efficient.optimization.loop.optimizers import S2SAM, SAM, ZOSAM
from hf_efficient.optimization.sharpness import sharpness
from hf_efficient.representation.evaluation.questions import Scene

from .demo_line import Line, right

SIDE, PLACES = 32, ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")
STEPS, BATCH, RATE, WRONG = 300, 32, 0.05, 0.4
DISTANCES = tuple(0.25 * i for i in range(-8, 9))
METHODS: dict[str, Any] = {"plain": None, "S2-SAM": S2SAM, "ZO-SAM": ZOSAM, "SAM": SAM}


@dataclass(frozen=True)
class Garments:
    """Pictures cut out of scenes, with their classes: (N, 1024) float32 and (N,) long."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int


def garments_of(scenes: Sequence[Scene]) -> Garments:
    """What the questions "what is at PLACE ?" are about, cut out; every fourth scene is for the test."""
    found: list[tuple[Tensor, str, int]] = []
    for number, scene in enumerate(scenes):
        pixels = torch.tensor(list(scene.image.convert("L").resize((96, 96)).tobytes()), dtype=torch.float32).view(
            96, 96
        )
        for question in scene.questions:
            place = question.question.removeprefix("what is at ").removesuffix(" ?")
            if question.family == "at" and place in PLACES:
                row, column = divmod(PLACES.index(place), 3)
                cut = pixels[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] / 255
                found.append((cut.flatten(), question.answer, number))
    names = sorted({answer for _, answer, _ in found})
    x, y = torch.stack([cut for cut, _, _ in found]), torch.tensor([names.index(answer) for _, answer, _ in found])
    test = torch.tensor([number % 4 == 0 for _, _, number in found])
    return Garments(x[~test], y[~test], x[test], y[test], len(names))


class Network(nn.Module):
    """Three layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        sizes = (SIDE * SIDE, 256, 128)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def loss_of(network: nn.Module, batch: Any) -> Tensor:
    """Cross entropy of a batch (x, y)."""
    x, y = batch
    return F.cross_entropy(network(x), y)


def accuracy(network: nn.Module, data: Garments) -> float:
    """Share of test pictures whose class is found."""
    with torch.no_grad():
        return float((network(data.x_test).argmax(1) == data.y_test).float().mean())


def trained(data: Garments, y: Tensor, method: Any, sparse: bool = False) -> tuple[nn.Module, float]:
    """A network, and the seconds of its steps.

    Args:
        data: pictures.
        y: the labels that it learns, of the training pictures.
        method: a torch optimizer of this package, or None for plain steps.
        sparse: whether all layers but the head are 90 % zeros, whose places BiDST learns.
    """
    torch.manual_seed(0)
    network: Any = Network(data.classes)
    if sparse:
        with extra("sparsity"):
            from peft import get_peft_model

            from hf_efficient import BiDSTConfig, train_sparsely
        config = BiDSTConfig(sparsity=0.9, target_modules=r"layers\.\d+", update_interval=20, backend="dense")
        network = get_peft_model(network, config)
    weights = [p for p in network.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": RATE, "momentum": 0.9}
    plain = torch.optim.SGD(weights, **settings)
    optimizer: Any = plain if method is None else method(weights, torch.optim.SGD, rho=0.1, **settings)
    if sparse:
        train_sparsely(network, plain, STEPS)
    chance, start = torch.Generator().manual_seed(1), time.perf_counter()
    for step in range(STEPS):
        for group in plain.param_groups if method is None else optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        picked = torch.randint(len(y), (BATCH,), generator=chance)
        batch = (data.x[picked], y[picked])
        if method is not None:
            optimizer.perturb(lambda batch=batch: loss_of(network, batch))
        loss_of(network, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network, time.perf_counter() - start


def with_wrong(data: Garments) -> Tensor:
    """The labels of the training pictures, a share of them drawn at random."""
    chance = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(data.y), generator=chance) < WRONG
    return torch.where(wrong, torch.randint(data.classes, data.y.shape, generator=chance), data.y)


def flat_minima(data: Garments) -> tuple[list[Line], dict[str, nn.Module]]:
    """Training with wrong labels, by each method: accuracy on right ones, sharpness, time of a step."""
    y = with_wrong(data)
    lines, networks = [], {}
    for name, method in tqdm(METHODS.items(), desc="flat minima", unit="training", leave=False):
        network, seconds = trained(data, y, method)
        networks[name] = network
        rise = sharpness(network, [(data.x, y)], 0.1, loss_of=loss_of)
        lines.append(
            Line(
                "optimization", f"{name}, {WRONG:.0%} of the labels wrong", f"{1e3 * seconds / STEPS:.2f} ms a step",
                f"{right(accuracy(network, data), len(data.y_test))}, sharpness {rise:.3f}",
            )
        )  # fmt: skip
    return lines, networks


def sparse_weights(data: Garments) -> tuple[list[Line], dict[str, Tensor]]:
    """Dense, sparse by BiDST, and dense with its smallest weights set to zero; and the masks of the first layer."""
    lines, masks = [], {}
    dense, _ = trained(data, data.y, None)
    one_shot = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in one_shot.layers:  # type: ignore[union-attr]
            magnitudes = layer.weight.abs().flatten()
            layer.weight[layer.weight.abs() <= magnitudes.kthvalue(int(0.9 * len(magnitudes))).values] = 0
    tuned, _ = trained(data, data.y, None, sparse=True)
    merged: Any = tuned.merge_and_unload()  # type: ignore[operator]
    for name, network in (("dense", dense), ("smallest weights set to zero", one_shot), ("BiDST", merged)):
        report = measure(network, data.x_test[:1], repeats=1).parameters
        lines.append(
            Line(
                "parameters",
                name,
                f"{report.nonzero:,} of {report.total:,} weights",
                right(accuracy(network, data), len(data.y_test)),
            )
        )
        first: Any = next(iter(network.children()))[0]  # type: ignore[index]
        used = first.weight.detach().abs().sum(0).view(SIDE, SIDE)
        masks[name] = used / used.max().clamp_min(1e-12)
    return lines, masks
