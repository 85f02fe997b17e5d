"""LLaVA (1.5): an image is a unit, one token per patch."""

from __future__ import annotations

from .family import Family


class Llava(Family):
    """The answers of `Family`."""

    features: tuple[str, ...] = ("projected", "encoder")


FAMILY = Llava()
