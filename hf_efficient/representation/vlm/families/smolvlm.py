"""SmolVLM: as Idefics3; the frames of a video are tiles too."""

from __future__ import annotations

from .idefics3 import Idefics3


class SmolVLM(Idefics3):
    """A batch of black tiles keeps one of them."""

    processor = "SmolVLMProcessor"
    least_tiles = 1


FAMILY = SmolVLM()
