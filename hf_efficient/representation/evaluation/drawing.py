"""The kept tokens, drawn on the image they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterable

from PIL import Image, ImageChops, ImageDraw, ImageFilter

FOG = (222, 227, 238)  # light, so that a dropped patch of a dark image differs from a kept one
FOG_SHARE = 0.82
EDGE = (255, 122, 0)
SHORT_SIDE = 384
MOST_PIXELS = 1 << 22  # of an image that is enlarged unasked: a thin one would become huge


def enlarge(image: Image.Image, scale: int | None = None) -> Image.Image:
    """An image in RGB, every pixel repeated `scale` times each way.

    Args:
        image: any mode.
        scale: whole factor >= 1; None takes the smallest that makes the short side at least 384 pixels, or the largest
            that keeps the image below 4 megapixels where that is less.

    Returns:
        A new image.

    Raises:
        ValueError: scale below 1.
    """
    if scale is None:
        width, height = image.size
        scale = max(1, min(-(-SHORT_SIDE // min(width, height)), math.isqrt(MOST_PIXELS // (width * height))))
    if scale < 1:
        raise ValueError(f"scale={scale} is too small; expected a whole number >= 1, or None to choose one.")
    width, height = image.size
    return image.convert("RGB").resize((width * scale, height * scale), Image.Resampling.NEAREST)


def draw_kept_tokens(
    image: Image.Image, kept: Iterable[int], grid: tuple[int, int], scale: int | None = None
) -> Image.Image:
    """The image with kept patches clear and framed, and all others under fog.

    The grid is laid over the whole image, which is right for processors that resize without cropping.

    Args:
        image: image the tokens were made of, any mode and size.
        kept: positions of the kept tokens in the flattened grid, row by row.
        grid: (rows, columns) of the tokens.
        scale: see `enlarge`.

    Returns:
        A new RGB image.

    Raises:
        ValueError: a position lies outside of the grid, or the grid has no cell.
    """
    rows, columns = grid
    positions = sorted({int(position) for position in kept})
    if rows < 1 or columns < 1:
        raise ValueError(f"grid={grid} has no cell; expected (rows, columns) >= (1, 1).")
    if positions and not 0 <= positions[0] <= positions[-1] < rows * columns:
        raise ValueError(f"Token {positions[0]} or {positions[-1]} lies outside of the {rows} x {columns} grid.")
    clear = enlarge(image, scale)
    width, height = clear.size
    boxes = [
        (c * width // columns, r * height // rows, (c + 1) * width // columns - 1, (r + 1) * height // rows - 1)
        for r, c in (divmod(position, columns) for position in positions)
    ]
    mask = Image.new("L", clear.size, 0)
    pen = ImageDraw.Draw(mask)
    for box in boxes:
        pen.rectangle(box, fill=255)
    fogged = Image.blend(clear, Image.new("RGB", clear.size, FOG), FOG_SHARE)
    drawn = Image.composite(clear, fogged, mask)
    drawn.paste(EDGE, mask=_outline(mask))
    return drawn


def _outline(mask: Image.Image) -> Image.Image:
    """The cells' outer edge, two pixels wide: kept pixels with a dropped one within two pixels."""
    return ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(5)))
