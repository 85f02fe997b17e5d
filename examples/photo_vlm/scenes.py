"""Scenes on photographs: one to nine objects on a raster of 3 x 3 places, at sizes from a patch to a place.

A scene is a 224 x 224 color image, a square out of one photograph with objects on it. Each place holds one object at
most, shifted within it, so that it can be asked for by its place.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from examples.tiny_vlm.scenes import PLACES, Images

from .objects import draw
from .sources import FONTS, SMALLEST_CROP, SPLITS, photograph
from .words import CHARTS, COLORS, EMOJI, GARMENTS, TEXT_KINDS

IMAGE_SIDE = 224
PATCH_SIDE = 14
GRID = IMAGE_SIDE // PATCH_SIDE
PLACE_SIDE = IMAGE_SIDE // 3
#: Coordinates are told in steps of 7 pixels.
BINS = 32
#: Longer side of an object made clearly larger, and the longest of the others then.
LEAD, REST = 74, 54
#: Pixels this near to a color of charts, in each channel, show it.
SAME_COLOR = 30

__all__ = ["LAYOUTS", "PLACES", "Item", "Layout", "Scene", "compose_scene"]


@dataclass(frozen=True)
class Layout:
    """What scenes look like.

    Args:
        items: fewest and most objects.
        sides: shortest and longest longer side of emoji and garments, in pixels; drawn evenly in the logarithm.
        text: mean number of words, and of numbers, where there is room (Poisson).
        chart: probability that one is a chart.
        tiny: probability that one is tiny.
        tiny_sides: its sides.
        leads: probability that one object is made clearly larger than all others.
        repeats: probability that kinds repeat, so that counting is worth asking for.
        photographs: names of the backgrounds.
        fonts: of text.
        garments: share of garments among the objects that are neither text nor chart.
    """

    items: tuple[int, int] = (3, 7)
    sides: tuple[int, int] = (30, 74)
    text: tuple[float, float] = (0.8, 0.6)
    text_sides: tuple[int, int] = (64, 74)
    chart: float = 0.4
    chart_sides: tuple[int, int] = (52, 74)
    tiny: float = 0.5
    tiny_sides: tuple[int, int] = (20, 28)
    leads: float = 0.35
    repeats: float = 0.4
    photographs: tuple[str, ...] = SPLITS["training"]
    fonts: tuple[str, ...] = FONTS
    garments: float = 0.2


LAYOUTS = {
    "standard": Layout(),
    "dense": Layout(items=(7, 9), sides=(24, 48), text=(1.2, 1.2)),
    "small": Layout(items=(3, 5), sides=(18, 30), text=(0.3, 0.3), chart=0, tiny=0),
    "sparse": Layout(items=(1, 2), text=(0.3, 0.3), chart=0.2),
    "documents": Layout(items=(5, 8), text=(2.0, 2.0), chart=1.0, tiny=0, repeats=0),
}


@dataclass(frozen=True)
class Item:
    """One object: its name, place (0 to 8 in reading order), frame in pixels (left, top, right, bottom) and facts."""

    name: str
    place: int
    box: tuple[int, int, int, int]
    facts: dict[str, str] = field(compare=False)
    tiny: bool = False

    @property
    def side(self) -> int:
        """Longer side in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True)
class Scene:
    """An image (224, 224, 3) uint8, its objects in reading order, and the object each patch shows.

    `owner` is (256,) int: index into `items`, or -1 for the photograph. `photograph` is the name of the background.
    `colors` is (256,) int: index into `COLORS` of the part of a chart that the patch shows most of, -1 for none.
    """

    pixels: np.ndarray
    items: tuple[Item, ...]
    owner: np.ndarray
    photograph: str
    colors: np.ndarray

    def image(self) -> Image.Image:
        """The scene as an RGB image."""
        return Image.fromarray(self.pixels)


def compose_scene(rng: np.random.Generator, garments: Images, layout: Layout) -> Scene:
    """Draw one scene: a square out of a photograph, then objects at distinct places."""
    name = layout.photographs[rng.integers(len(layout.photographs))]
    canvas = _background(rng, name)
    names = _names(rng, layout)
    places = np.sort(rng.choice(9, len(names), replace=False))
    tiny = int(rng.integers(len(names))) if rng.random() < layout.tiny else -1
    small = [index == tiny and word in EMOJI for index, word in enumerate(names)]
    sides = [_side(rng, word, layout, s) for word, s in zip(names, small, strict=True)]
    if rng.random() < layout.leads:
        lead = rng.integers(len(names))
        shrunk = [side if word in TEXT_KINDS else min(side, REST) for word, side in zip(names, sides, strict=True)]
        sides = [LEAD if index == lead else side for index, side in enumerate(shrunk)]
        small[lead] = False
    items, owned = [], np.zeros((len(names), GRID * GRID), np.float32)
    for index, (word, place) in enumerate(zip(names, places, strict=True)):
        drawn = draw(rng, word, sides[index], garments, layout.fonts)
        width, height = drawn.image.size
        left = int(place % 3 * PLACE_SIDE + rng.integers(0, PLACE_SIDE - width + 1))
        top = int(place // 3 * PLACE_SIDE + rng.integers(0, PLACE_SIDE - height + 1))
        canvas.paste(drawn.image, (left, top), drawn.image)
        opacity = np.zeros((IMAGE_SIDE, IMAGE_SIDE), np.float32)
        opacity[top : top + height, left : left + width] = np.asarray(drawn.image.getchannel("A")) / 255
        owned[index] = opacity.reshape(GRID, PATCH_SIDE, GRID, PATCH_SIDE).mean((1, 3)).ravel()
        owned[index, (top + height // 2) // PATCH_SIDE * GRID + (left + width // 2) // PATCH_SIDE] += 1
        items.append(Item(word, int(place), (left, top, left + width, top + height), drawn.facts, small[index]))
    owner = np.where(owned.max(0) >= 0.2, owned.argmax(0), -1)
    pixels = np.asarray(canvas)
    on_chart = np.isin(owner, [index for index, item in enumerate(items) if item.name in CHARTS])
    return Scene(pixels, tuple(items), owner, name, np.where(on_chart, patch_colors(pixels), -1))


def patch_colors(pixels: np.ndarray) -> np.ndarray:
    """(256,) int: which of `COLORS` covers the most of each patch, -1 where none covers a quarter."""
    patches = pixels.reshape(GRID, PATCH_SIDE, GRID, PATCH_SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(GRID**2, -1, 3)
    palette = np.array(list(COLORS.values()), np.int16)
    covered = np.stack([(np.abs(patches - color).max(-1) < SAME_COLOR).mean(-1) for color in palette])
    return np.where(covered.max(0) >= 0.25, covered.argmax(0), -1)


def _background(rng: np.random.Generator, name: str) -> Image.Image:
    """A square out of the photograph, of random size and place, mirrored or not."""
    image = photograph(name)
    side = int(rng.integers(min(SMALLEST_CROP, min(image.size)), min(image.size) + 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    box = (left, top, left + side, top + side)
    square = image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR, box)
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else square


def _names(rng: np.random.Generator, layout: Layout) -> list[str]:
    """What the objects are, in random order."""
    count = int(rng.integers(layout.items[0], layout.items[1] + 1))
    special = [kind for kind, mean in zip(TEXT_KINDS, layout.text, strict=True) for _ in range(rng.poisson(mean))]
    if rng.random() < layout.chart:
        special.insert(0, str(rng.choice(CHARTS)))
    special = special[: count // 2]
    count -= len(special)
    kinds = [
        str(rng.choice(tuple(GARMENTS) if rng.random() < layout.garments else EMOJI)) for _ in range(max(count, 2))
    ]
    if rng.random() < layout.repeats:
        kinds = [str(word) for word in rng.choice(kinds[:2], count)]
    names = [*special, *kinds[:count]]
    return [names[at] for at in rng.permutation(len(names))]


def _side(rng: np.random.Generator, word: str, layout: Layout, tiny: bool) -> int:
    if word in TEXT_KINDS:
        low, high = layout.text_sides
    elif word in CHARTS:
        low, high = layout.chart_sides
    else:
        low, high = layout.tiny_sides if tiny else layout.sides
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
