"""What ID-Pruner keeps and ITG makes of a photograph, behind DINOv2."""

from functools import cache

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage import data
from torch import Tensor

from benchmarks.models.dinov2_from_wheel import load_dinov2
from hf_efficient import TokenPrunerConfig, reduce_tokens

from .panels import INK, note, panels

PATCH, GRID, KEPT = 14, 16, 16
SIDE = PATCH * GRID


@cache
def photograph() -> np.ndarray:
    """(224, 224, 3) floats in [0, 1]: a cup of coffee, the middle of a photograph of scikit-image (public domain)."""
    picture = torch.from_numpy(data.coffee().copy()).permute(2, 0, 1)[None].float() / 255
    small = torch.nn.functional.interpolate(picture[..., :400, 100:500], (SIDE, SIDE), mode="area")
    return small[0].permute(1, 2, 0).numpy()


@cache
@torch.no_grad()
def tokens() -> Tensor:
    """(1, 256, 384): what the encoder says of each patch."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(photograph()) - mean) / deviation).permute(2, 0, 1)[None]
    return load_dinov2()(pixels).last_hidden_state[:, 1:]


def patches(values: np.ndarray) -> np.ndarray:
    """(256,) or (256, c) values of tokens -> (224, 224) or (224, 224, c) pixels."""
    square = values.reshape(GRID, GRID, *values.shape[1:])
    return square.repeat(PATCH, 0).repeat(PATCH, 1)


def only(kept: Tensor) -> np.ndarray:
    """The picture with all but some patches pale."""
    there = np.zeros(GRID * GRID)
    there[kept.numpy()] = 1
    mask = patches(there)[..., None]
    return photograph() * mask + (0.15 * photograph() + 0.85) * (1 - mask)


def dots(place: Axes, kept: Tensor, sizes: np.ndarray) -> None:
    """In the middle of patches."""
    x, y = (kept % GRID + 0.5) * PATCH, (kept // GRID + 0.5) * PATCH
    place.scatter(x.numpy(), y.numpy(), s=sizes, c="white", edgecolors=INK, alpha=0.9)


def id_pruner() -> Figure:
    """Importance alone takes neighbours; with coverage those kept stand for all."""
    alone = reduce_tokens(tokens(), TokenPrunerConfig("top_importance", budget=KEPT, importance="distinct"))
    ours = reduce_tokens(tokens(), TokenPrunerConfig("id_pruner", budget=KEPT, proportional_attention=True))
    assert ours.assignment is not None
    colours = plt.get_cmap("tab20")(np.arange(KEPT) % 20)[:, :3]
    regions = 0.6 * patches(colours[ours.assignment[0].numpy()]) + 0.4 * photograph().mean(-1, keepdims=True)
    figure, places = panels(
        (f"{GRID * GRID} tokens", f"the {KEPT} most important", f"ID-Pruner: {KEPT}", "what each of them stands for")
    )
    for place, image in zip(
        places, (photograph(), only(alone.indices[0]), only(ours.indices[0]), regions), strict=True
    ):
        place.imshow(image.clip(0, 1))
    dots(places[3], ours.indices[0], np.full(KEPT, 14.0))
    note(places[1], f"coverage {float(alone.report.coverage):.2f}: mean likeness\nof a token to the nearest one kept")
    note(places[2], f"coverage {float(ours.report.coverage):.2f}")
    note(places[3], "dot: a token kept\ncolour: the tokens it stands for")
    return figure


def itg() -> Figure:
    """Means of all tokens instead of some of them."""
    config = TokenPrunerConfig("itg", budget=KEPT, proportional_attention=True)
    made = reduce_tokens(tokens(), config)
    kept = reduce_tokens(tokens(), TokenPrunerConfig("id_pruner", budget=KEPT, proportional_attention=True))
    assert made.assignment is not None
    assert made.mass is not None
    group = made.assignment[0].numpy()
    colour = photograph().reshape(GRID, PATCH, GRID, PATCH, 3).mean((1, 3)).reshape(-1, 3)
    means = np.stack([colour[group == k].mean(0) for k in range(KEPT)])
    lost, lost_kept = (float(torch.as_tensor(r.report.reconstruction_error)) for r in (made, kept))
    figure, places = panels(
        (f"{GRID * GRID} tokens", f"{KEPT} kept by ID-Pruner", f"ITG: {KEPT} means", "their places and sizes")
    )
    for place, image in zip(
        places, (photograph(), only(kept.indices[0]), patches(means[group]), photograph()), strict=True
    ):
        place.imshow(image.clip(0, 1))
    dots(places[3], made.indices[0], 5 * made.mass[0].numpy())
    note(places[1], f"lost of what all tokens say: {lost_kept:.0%}")
    note(places[2], f"lost of what all tokens say: {lost:.0%}\ncolour: mean of a token's patches")
    note(places[3], "dot: where a token stands\nits area: how many it is the mean of")
    return figure
