"""Backgrounds of scenes: crops of the photographs that scikit-image and scikit-learn bring along, in grey."""

from functools import cache

import numpy as np
from PIL import Image

#: Names of `skimage.data` and `sklearn.datasets.load_sample_image`; no training scene shows those held out.
TRAINING = ("astronaut", "camera", "coffee", "coins", "brick", "grass", "hubble_deep_field", "china.jpg")
HELD_OUT = ("chelsea", "rocket", "gravel", "moon", "flower.jpg")


@cache
def photograph(name: str) -> Image.Image:
    """A photograph in grey."""
    if name.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(name)).convert("L")
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("L")


def crop(rng: np.random.Generator, names: tuple[str, ...], side: int) -> np.ndarray:
    """(side, side) float32: a square out of one of the photographs, of random size and place, flipped or not."""
    image = photograph(names[rng.integers(len(names))])
    size = int(rng.integers(side, min(image.size) + 1))
    left, top = (int(rng.integers(0, length - size + 1)) for length in image.size)
    square = image.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + size, top + size))
    pixels = np.asarray(square, np.float32)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels.copy()
