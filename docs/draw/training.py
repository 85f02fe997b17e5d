"""A step of S2-SAM and of ZO-SAM on a loss of two weights, and which inputs a layer uses while BiDST trains it."""

import copy
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from hf_efficient import S2SAM, ZOSAM, BiDSTConfig, train_sparsely
from hf_efficient.cli.demo_training import SIDE, Network, garments_of
from hf_efficient.representation.evaluation.questions import load_evaluation_set

from .panels import INK, OTHER, OURS, PALE, arrow, at, note, panels

RHO, RATE = 0.45, 0.5
START = (-0.9, 1.75)
#: Method -> passes of one step: "f" forward, "b" backward (about two forwards long).
PASSES = {"plain": "fb", "SAM": "fbfb", "ZO-SAM": "fffb", "S2-SAM": "fb"}


def loss_of(w: Tensor) -> Tensor:
    """A bent valley over (..., 2) weights."""
    x, y = w[..., 0], w[..., 1]
    return 0.2 * (x - 1) ** 2 + 1.2 * (y - 0.35 * x**2 + 0.2) ** 2


def contours(place: Axes) -> None:
    """The loss, dark where it is low."""
    x, y = np.meshgrid(np.linspace(-2.3, 2.0, 160), np.linspace(-0.9, 2.3, 160))
    values = loss_of(torch.from_numpy(np.stack([x, y], -1)).float()).numpy()
    place.contour(x, y, np.sqrt(values), 14, cmap="Greys_r", linewidths=0.8, alpha=0.7)
    place.set_aspect("equal")


def point(place: Axes, where: Tensor, colour: str, text: str, offset: tuple[int, int] = (6, -4)) -> None:
    """A dot with a word beside it."""
    place.plot(*at(where), "o", color=colour, ms=5)
    place.annotate(text, at(where), textcoords="offset points", xytext=offset, fontsize=10, color=colour)


def passes(place: Axes, ours: str) -> None:
    """Bars of the passes of a step, one method under the other."""
    for row, (name, kinds) in enumerate(reversed(PASSES.items())):
        left = 0.0
        for kind in kinds:
            width = 1.0 if kind == "f" else 2.0
            colour = OURS if name == ours else PALE
            place.barh(row, width - 0.08, left=left, color=colour, alpha=0.55 if kind == "f" else 1.0)
            left += width
        place.text(-0.2, row, name, ha="right", va="center", fontsize=9, color=INK)
    place.set_xlim(-2.4, 6.2)
    note(place, "pale: forward; full: backward\n")


def s2sam() -> Figure:
    """The ascent direction is the gradient of the step before."""
    figure, (place, cost) = panels(("one step of S2-SAM", "passes of one step"), (1.5, 1.2))
    contours(place)
    w = torch.nn.Parameter(torch.tensor(START))
    optimizer = S2SAM([w], torch.optim.SGD, rho=RHO, lr=RATE)
    points = [w.detach().clone()]
    for _ in range(2):
        optimizer.perturb()
        raised = w.detach().clone()
        loss_of(w).backward()
        optimizer.step()
        optimizer.zero_grad()
        points.append(w.detach().clone())
    before, start, end = points
    arrow(place, before, start, "grey")
    arrow(place, start, raised, OTHER)
    arrow(place, start, end, OURS)
    arrow(place, raised, (raised + end - start), PALE)
    point(place, before, "grey", "$w_{t-2}$", (-34, -4))
    point(place, start, INK, "$w_{t-1}$")
    point(place, raised, OTHER, "$u_t$", (8, 0))
    point(place, end, OURS, "$w_t$")
    note(place, "dark grey: the last step; red: up by its gradient\ngreen: down by the gradient at $u_t$ (pale)")
    passes(cost, "S2-SAM")
    return figure


def zosam() -> Figure:
    """The ascent direction is a random one, up or down by two losses."""
    figure, (place, cost) = panels(("one step of ZO-SAM", "passes of one step"), (1.5, 1.2))
    contours(place)
    w = torch.nn.Parameter(torch.tensor(START))
    start, asked = w.detach().clone(), []

    def loss() -> Tensor:
        asked.append((w.detach().clone(), float(loss_of(w))))
        return loss_of(w)

    optimizer = ZOSAM([w], torch.optim.SGD, rho=RHO, lr=RATE)
    optimizer.perturb(loss)
    raised = w.detach().clone()
    loss_of(w).backward()
    optimizer.step()
    for where, value in asked:
        point(place, where, OTHER, f"L = {value:.2f}", (8, -3))
    arrow(place, start, raised, OTHER)
    arrow(place, start, w, OURS)
    point(place, start, INK, "$w_{t-1}$")
    point(place, w.detach(), OURS, "$w_t$")
    note(place, "red: two losses say which way is up\ngreen: down by the gradient found there")
    passes(cost, "ZO-SAM")
    return figure


def bidst() -> Figure:
    """Connections of each input pixel, at the start, on the way and at the end."""
    data, steps, shown = garments_of(load_evaluation_set()), 400, (0, 100, 400)
    torch.manual_seed(0)
    settings: dict[str, Any] = {"sparsity": 0.95, "update_interval": 10, "backend": "dense", "init": "random"}
    from peft import get_peft_model

    network: Any = get_peft_model(Network(data.classes), BiDSTConfig(target_modules=r"layers\.\d+", **settings))
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
    train_sparsely(network, optimizer, steps)
    chance, found = torch.Generator().manual_seed(1), [used(network)]
    for step in range(1, steps + 1):
        picked = torch.randint(len(data.y), (32,), generator=chance)
        F.cross_entropy(network(data.x[picked]), data.y[picked]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in shown:
            found.append(used(network))
    figure, places = panels(("mean of the pictures", *(f"after {step} steps" for step in shown)))
    places[0].imshow(data.x.mean(0).view(SIDE, SIDE), cmap="Greys_r")
    for place, count in zip(places[1:], found, strict=True):
        place.imshow(count, cmap="viridis", vmin=0, vmax=float(found[-1].max()))
        note(place, f"{int(count.sum()):,} connections")
    return figure


def used(network: Any) -> Tensor:
    """(32, 32): how many active weights of the first layer look at each pixel."""
    plain = copy.deepcopy(network).merge_and_unload()
    return (plain.layers[0].weight != 0).sum(0).view(SIDE, SIDE)
