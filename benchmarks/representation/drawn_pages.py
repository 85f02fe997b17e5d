"""What people show to document and screen models, drawn: pages of text, tables, screens; and photographs beside them.

Everything follows from the seed. Sizes are no multiples of a patch, so that processors resize as they do in use.
"""

import io
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAGE, SCREEN = (850, 1100), (1280, 720)  # US letter at 100 dots per inch; a small screen
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "hubble_deep_field")


def word(rng: random.Random) -> str:
    """Something that looks like a word."""
    return "".join(rng.choice("bcdfghklmnprst") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))


def paragraph(draw: ImageDraw.ImageDraw, rng: random.Random, box: tuple[int, int, int, int], size: int) -> None:
    """Words, flush left, in a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    font = ImageFont.load_default(size)
    while top + size <= bottom:
        line = word(rng).capitalize()
        while draw.textlength(f"{line} {(new := word(rng))}", font) < right - left:
            line = f"{line} {new}"
        draw.text((left, top), line if top + 2 * size * 1.4 < bottom else line[: len(line) // 2] + ".", "black", font)
        top += round(size * 1.4)


def page(seed: int) -> Image.Image:
    """A page of text: a heading, one or two columns, margins."""
    rng, image = random.Random(seed), Image.new("RGB", PAGE, "white")
    draw, size, columns = ImageDraw.Draw(image), rng.choice((13, 15, 17)), rng.choice((1, 2))
    draw.text((90, 80), " ".join(word(rng).capitalize() for _ in range(4)), "black", ImageFont.load_default(28))
    wide = (PAGE[0] - 180 - 30 * (columns - 1)) // columns
    for column in range(columns):
        left, top = 90 + column * (wide + 30), 150
        while top < PAGE[1] - 160:
            high = rng.randint(90, 220)
            paragraph(draw, rng, (left, top, left + wide, min(top + high, PAGE[1] - 90)), size)
            top += high + 24
    return image


def table(seed: int) -> Image.Image:
    """A ruled table of numbers, its head shaded, under a line of text."""
    rng, image = random.Random(100 + seed), Image.new("RGB", PAGE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    paragraph(draw, rng, (70, 60, 780, 110), 15)
    columns, rows, high = rng.randint(4, 8), rng.randint(14, 28), rng.choice((26, 30, 34))
    wide = 710 // columns
    draw.rectangle((70, 130, 70 + wide * columns, 130 + high), fill=(222, 229, 240))
    for row in range(rows + 1):
        draw.line((70, 130 + row * high, 70 + wide * columns, 130 + row * high), "grey")
    for column in range(columns + 1):
        draw.line((70 + column * wide, 130, 70 + column * wide, 130 + rows * high), "grey")
        for row in range(rows if column < columns else 0):
            text = word(rng) if row == 0 or column == 0 else f"{rng.uniform(0, 1000):.1f}"
            draw.text((76 + column * wide, 134 + row * high), text, "black", font)
    return image


def screen(seed: int) -> Image.Image:
    """A window with a bar of tools, a list at its side, cards and buttons; light or dark."""
    rng, dark = random.Random(200 + seed), seed % 3 == 2
    back, front, ink = ((32, 33, 36), (48, 50, 54), "white") if dark else ((245, 246, 248), (255, 255, 255), "black")
    image = Image.new("RGB", SCREEN, back)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    accent = tuple(rng.randint(40, 220) for _ in range(3))
    draw.rectangle((0, 0, SCREEN[0], 44), fill=accent)
    draw.text((16, 12), word(rng).capitalize(), "white", ImageFont.load_default(18))
    draw.rectangle((0, 44, 220, SCREEN[1]), fill=front)
    for row in range(rng.randint(6, 14)):
        draw.ellipse((16, 66 + 36 * row, 34, 84 + 36 * row), fill=accent)
        draw.text((46, 66 + 36 * row), f"{word(rng)} {word(rng)}", ink, font)
    for card in range(rng.randint(3, 6)):
        left, top = 250 + 340 * (card % 3), 76 + 310 * (card // 3)
        draw.rounded_rectangle((left, top, left + 310, top + 280), 10, fill=front)
        draw.text((left + 16, top + 14), word(rng).capitalize(), ink, ImageFont.load_default(20))
        for line in range(rng.randint(1, 4)):
            draw.text((left + 16, top + 56 + 24 * line), " ".join(word(rng) for _ in range(4)), ink, font)
        draw.rounded_rectangle((left + 16, top + 230, left + 116, top + 262), 8, fill=accent)
        draw.text((left + 40, top + 237), "Open", "white", font)
    return image


def scan(seed: int) -> Image.Image:
    """A page as JPEG keeps it at quality 75: ringing around letters, nothing exactly white any more beside them."""
    held = io.BytesIO()
    page(seed).save(held, "JPEG", quality=75)
    return Image.open(held).convert("RGB")


def noisy_scan(seed: int) -> Image.Image:
    """A page as a sensor sees it: noise of two levels everywhere."""
    pixels = np.asarray(page(seed)).astype(float)
    noise = np.random.default_rng(seed).normal(0, 2, pixels.shape)
    return Image.fromarray((pixels * 0.95 + 6 + noise).round().clip(0, 255).astype(np.uint8))


def photograph(seed: int) -> Image.Image:
    """A photograph of scikit-image, at most 1024 pixels wide or high."""
    from skimage import data

    image = Image.fromarray(np.asarray(getattr(data, PHOTOGRAPHS[seed % len(PHOTOGRAPHS)])())).convert("RGB")
    image.thumbnail((1024, 1024))
    return image


PICTURES: dict[str, Callable[[int], Image.Image]] = {
    "page of text": page,
    "table": table,
    "screen": screen,
    "page as JPEG": scan,
    "page with noise": noisy_scan,
    "photograph": photograph,
}
