"""Whether features form a raster: seen on pictures that are brighter downwards, and on ones brighter to the right.

The gradient of the encoder's embeddings says which pixels make a token, the map which tokens make a feature; the pixels
that the processor makes of the two pictures say where in the picture these are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_efficient.representation.vlm.families.encoder import Reached, tell
from hf_efficient.representation.vlm.families.family import VisualInputs, encoded
from hf_efficient.representation.vlm.families.patch_map import PatchMap, Unclear, owners, private
from hf_efficient.representation.vlm.families.raster import Raster, sides_of

from .look import Look
from .refusal import Unproven
from .samples import SHAPES, processed

BLUR = 0.25  # of a row or column, by which places within it may differ
SPAN = 0.05  # of pixel values as the processor makes them, below which places are one


def find_raster(
    processor: Any, first: str, looks: list[Look], maps: list[PatchMap], units: list[list[int]]
) -> Raster | None:
    """The rule for rows and columns that holds for all units of all looks; None if there is none.

    Args:
        processor: without a pruner.
        first: name of the encoder's first attention layer.
        looks: at pictures alone, then at a batch.
        maps: of every look.
        units: sizes of the units of every look.
    """
    seen: list[tuple[tuple[int, int], int, dict[str, Any], list[int]]] = []
    try:
        for look, found, sizes in zip(looks[:-1], maps, units, strict=False):
            places = places_of(processor, first, look, found)
            for i, part in enumerate(places.split(sizes)):
                grid = grid_of(part)
                if grid is None:
                    return None
                seen.append((grid, i, look.images.arguments, sizes))
    except (Unclear, Unproven):
        return None
    for name in looks[0].images.arguments:
        sides = {side_by(name, *one) for one in seen}
        rule = Raster(name, max(sides))
        if len(sides) == 1 and rule.side and None not in rule.grids(looks[-1].images.arguments, units[-1]):
            return rule
    return None


def side_by(name: str, grid: tuple[int, int], unit: int, arguments: dict[str, Any], sizes: list[int]) -> int:
    """What an argument's sides must be divided by to be rows and columns of a unit; 0 if nothing makes them so."""
    sides = sides_of(arguments.get(name), len(sizes))
    if sides is None:
        return 0
    side = sides[unit][0] // grid[0]
    return side if sides[unit] == (side * grid[0], side * grid[1]) else 0


def places_of(processor: Any, first: str, look: Look, found: PatchMap) -> Tensor:
    """(N, 2): how far down and how far right the pixels of every feature are, in numbers of any scale.

    Raises:
        Unclear: it cannot be told.
    """
    name = next(name for name, value in look.images.arguments.items() if value is look.images.pixels)
    feature = features_of_pixels(look.images, name, first, found)
    used = feature >= 0
    count = torch.zeros(found.count).index_add(0, feature[used], torch.ones(int(used.sum())))
    if not bool((count > 0).all()):
        raise Unclear("there are features of no pixel")
    columns = []
    for down in (True, False):
        pixels = processed(processor, [[ramp(*SHAPES[look.shown[0]], down)]])[name].float()
        if pixels.shape != look.images.pixels.shape:
            raise Unclear("the processor makes other pixels of other pictures")
        values = pixels.flatten() if pixels.dim() > 3 else pixels.flatten(0, -2).mean(-1)
        columns.append(torch.zeros(found.count).index_add(0, feature[used], values[used]) / count)
    return torch.stack(columns, dim=1)


def features_of_pixels(images: VisualInputs, name: str, first: str, found: PatchMap) -> Tensor:
    """Of every pixel (..., height, width), or every row of pixels (patches, values), the feature it makes; -1 for none.

    Raises:
        Unclear: a pixel makes several tokens, or tokens are other ones in the encoder's first layer.
    """
    own = private(images.base, images.base.get_submodule(first))
    own.get_submodule(first).register_forward_pre_hook(tell, with_kwargs=True)
    pixels = images.pixels.detach()
    leaf = (pixels[..., None] if pixels.dim() > 3 else pixels).clone().requires_grad_()
    with torch.enable_grad():
        arguments = {**images.arguments, name: leaf[..., 0] if pixels.dim() > 3 else leaf}
        try:
            encoded(VisualInputs(own, images.modality, arguments))
        except Reached as call:
            tokens = call.given[0] if call.given else call.named["hidden_states"]
        else:
            raise Unclear("its attention layers are not called")
        token = owners(tokens.reshape(-1, tokens.shape[-1]), [leaf]).cpu()
    if tokens.shape[:-1].numel() != len(found.feature):
        raise Unclear("tokens are merged inside the encoder")
    return torch.where(token < 0, -1, found.feature[token])


def grid_of(places: Tensor) -> tuple[int, int] | None:
    """Rows and columns of a raster whose cells have these places (n, 2), row by row; None if they form none."""
    spans = places.amax(0) - places.amin(0)
    down, right = ((places - places.amin(0)) / spans.clamp_min(SPAN) * (spans >= SPAN)).unbind(1)
    for rows in range(1, len(places) + 1):
        if len(places) % rows:
            continue
        columns = len(places) // rows
        if (rows > 1 and spans[0] < SPAN) or (columns > 1 and spans[1] < SPAN):
            continue  # as in a margin, where all places are one
        if _straight(down.view(rows, columns)) and _straight(right.view(rows, columns).T):
            return rows, columns
    return None


def _straight(lines: Tensor) -> bool:
    """Whether places (lines, cells) differ little within every line, and lines come one after the other."""
    blur = BLUR / len(lines)
    return bool(((lines.amax(1) - lines.amin(1)) <= blur).all() and (lines.mean(1).diff() >= -blur).all())


def ramp(height: int, width: int, down: bool) -> Image.Image:
    """A grey picture that grows brighter downwards, or to the right."""
    values = np.linspace(0, 255, height if down else width)[:, None] if down else np.linspace(0, 255, width)[None]
    return Image.fromarray(np.broadcast_to(values, (height, width)).astype(np.uint8)).convert("RGB")
