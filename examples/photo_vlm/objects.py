"""What lies on the photographs: emoji, garments, text in real fonts and small charts, each drawn as an RGBA image."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from examples.tiny_vlm.scenes import Images

from .sources import font
from .words import CHARTS, COLORS, GARMENTS, TEXT_KINDS, WORDS, character

_EMOJI_SIZE = 109  # the one size of the bitmaps in NotoColorEmoji


@dataclass(frozen=True)
class Drawn:
    """An object by itself.

    Args:
        name: its word: an emoji's or a garment's, "word", "number", "bars" or "pie".
        image: RGBA, cut to what is opaque.
        facts: what it says: `text` of a word or number; `highest`, `lowest` and `parts` of a chart.
    """

    name: str
    image: Image.Image
    facts: dict[str, str]


@cache
def emoji_image(name: str) -> Image.Image:
    """The emoji in RGBA, cut to what is opaque."""
    canvas = Image.new("RGBA", (160, 160))
    pen = ImageDraw.Draw(canvas)
    pen.text((10, 10), character(name), font=font("noto/NotoColorEmoji", _EMOJI_SIZE), embedded_color=True)
    return canvas.crop(canvas.getchannel("A").getbbox())


def draw(rng: np.random.Generator, name: str, side: int, garments: Images, fonts: tuple[str, ...]) -> Drawn:
    """An object whose longer side is `side` pixels.

    Args:
        rng: draws what is left open: which garment, the text, the font, colors.
        name: what it is.
        side: longer side in pixels.
        garments: images (n, 28, 28) uint8 by the words of `load_fashion_mnist`.
        fonts: of text.
    """
    if name in TEXT_KINDS:
        return _text(rng, name, side, fonts)
    if name in CHARTS:
        return (_bars if name == "bars" else _pie)(rng, side)
    image = _garment(rng, garments[GARMENTS[name]]) if name in GARMENTS else emoji_image(name)
    return Drawn(name, _fit(image, side), {})


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _garment(rng: np.random.Generator, images: np.ndarray) -> Image.Image:
    """A garment in a color of its own."""
    grey = images[rng.integers(len(images))].astype(np.float32)
    color = np.array(rng.uniform(120, 255, 3), np.float32)
    rgb = (0.25 + 0.75 * grey[..., None] / 255) * color
    opacity = np.minimum(grey * 6, 255)
    image = Image.fromarray(np.dstack([rgb, opacity]).astype(np.uint8), "RGBA")
    return image.crop(image.getchannel("A").point(lambda a: 255 * (a > 60)).getbbox())


def _text(rng: np.random.Generator, kind: str, side: int, fonts: tuple[str, ...]) -> Drawn:
    """A word or a two-digit number on a plate."""
    text = str(WORDS[rng.integers(len(WORDS))]) if kind == "word" else str(rng.integers(10, 100))
    face = fonts[rng.integers(len(fonts))]
    dark, light = rng.integers(0, 70, 3), rng.integers(190, 256, 3)
    ink, plate = (dark, light) if rng.random() < 0.6 else (light, dark)
    big = font(face, 96)
    left, top, right, bottom = big.getbbox(text)
    image = Image.new("RGBA", (int(right - left) + 24, int(bottom - top) + 24), (*map(int, plate), 255))
    ImageDraw.Draw(image).text((12 - left, 12 - top), text, font=big, fill=(*map(int, ink), 255))
    return Drawn(kind, _fit(image, side), {"text": text})


def _heights(rng: np.random.Generator, count: int) -> np.ndarray:
    """Two or more shares of the longest, apart enough to be told apart."""
    while True:
        heights = rng.uniform(0.2, 1.0, count)
        heights = heights / heights.max()
        ranked = np.sort(heights)
        if ranked[-1] - ranked[-2] >= 0.2 and ranked[1] - ranked[0] >= 0.12:
            return heights


def _chart(rng: np.random.Generator) -> tuple[list[str], np.ndarray, dict[str, str]]:
    count = int(rng.integers(2, 5))
    colors = [str(c) for c in rng.choice(list(COLORS), count, replace=False)]
    values = _heights(rng, count)
    facts = {
        "highest": colors[int(values.argmax())],
        "lowest": colors[int(values.argmin())],
        "parts": str(count),
    }
    return colors, values, facts


def _bars(rng: np.random.Generator, side: int) -> Drawn:
    colors, values, facts = _chart(rng)
    image = Image.new("RGBA", (128, 128), (250, 250, 250, 255))
    pen = ImageDraw.Draw(image)
    pen.line([(10, 10), (10, 118), (120, 118)], fill=(60, 60, 60, 255), width=3)
    slot = 104 / len(colors)
    for at, (color, value) in enumerate(zip(colors, values, strict=True)):
        left = 15 + at * slot
        pen.rectangle([left, 116 - 100 * value, left + 0.75 * slot, 116], fill=(*COLORS[color], 255))
    return Drawn("bars", _fit(image, side), facts)


def _pie(rng: np.random.Generator, side: int) -> Drawn:
    colors, values, facts = _chart(rng)
    image = Image.new("RGBA", (256, 256), (250, 250, 250, 255))
    pen = ImageDraw.Draw(image)
    angle = float(rng.uniform(0, 360))
    for color, share in zip(colors, values / values.sum(), strict=True):
        pen.pieslice([12, 12, 244, 244], angle, angle + 360 * share, fill=(*COLORS[color], 255))
        angle += 360 * share
    return Drawn("pie", _fit(image, side), facts)
