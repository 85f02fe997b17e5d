"""Images of anybody: opened with limits on what is decoded and made of them, upright, in RGB, on white."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # none that starts another program or opens another file
LEAST_SIDE, MOST_PIXELS, MOST_RATIO = 16, 40_000_000, 16
SHORTENED = 1024  # pixels of the long side: no model here sees more


class ImageError(ValueError):
    """A file that is no image, a damaged one, or one beyond the limits. The message says what to do."""


def read_image(path: str, most_pixels: int = MOST_PIXELS, long_side: int = SHORTENED) -> Image.Image:
    """Open an image that may be anything, or say what is wrong with it.

    Its size is looked at before a pixel is decoded. Then it is made smaller at once, so that whatever follows works on
    `long_side` pixels at most; a smaller image keeps every pixel.

    Args:
        path: of the file.
        most_pixels: that are decoded.
        long_side: of the result.

    Returns:
        A new image in RGB, turned as its camera was held, transparency on white, 16 bits scaled to 8.

    Raises:
        ImageError: no image, animated, damaged, too large, too small, or too thin.
    """
    with told(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
        with Image.open(path, formats=FORMATS) as image:
            _check(image, most_pixels)
            image.draft("RGB", (long_side, long_side))  # a JPEG file is decoded smaller
            small = _eight_bits(image)
            small.thumbnail((long_side, long_side), reducing_gap=2)
            small.info = image.info
            small.getexif().update(image.getexif())
            upright = ImageOps.exif_transpose(small)
            return _on_white(upright)


@contextmanager
def told(most_pixels: int = MOST_PIXELS) -> Iterator[None]:
    """In the block, what Pillow raises for a file that is no image, or a damaged one, becomes an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(most_pixels) from None
    except Image.UnidentifiedImageError:
        raise ImageError("This file is not an image. Take a PNG, JPEG or WebP file.") from None
    except FileNotFoundError:
        raise ImageError("This image is gone. Upload it again.") from None
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error,
            OverflowError, MemoryError, RuntimeError):  # fmt: skip  # what Pillow's readers raise for broken files
        raise ImageError("This image is damaged. Save it again, or take another.") from None


def _check(image: Image.Image, most_pixels: int) -> None:
    width, height = image.size
    if width * height > most_pixels:
        raise _too_large(most_pixels)
    if min(width, height) < LEAST_SIDE:
        raise ImageError(f"This image has {width} x {height} pixels; it needs at least {LEAST_SIDE} a side.")
    if max(width, height) > MOST_RATIO * min(width, height):
        raise ImageError(
            f"This image has {width} x {height} pixels: one side is more than {MOST_RATIO} times the other. Cut it."
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):  # a telephone's MPO holds a preview, too
        raise ImageError("This image is animated. Take a single frame of it.")


def _too_large(most_pixels: int) -> ImageError:
    return ImageError(f"This image has more than {most_pixels / 1e6:g} megapixels. Scale it down.")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A copy whose pixels can be averaged: no palette, 8 bits a channel."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode == "I":
        return image.point(lambda value: value / 257).convert("L")
    if image.mode in ("1", "P", "PA", "LA") or "transparency" in image.info:
        return image.convert("RGBA" if image.mode in ("PA", "LA") or "transparency" in image.info else "RGB")
    return image.copy()


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "RGBa"):
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
