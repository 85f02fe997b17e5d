"""PaliGemma: an image is a unit; importance is the attention received in the last SigLIP layer."""

from __future__ import annotations

from .family import Family


class PaliGemma(Family):
    """The stock forward counts positions from 1."""

    processor = "PaliGemmaProcessor"
    first_position = 1


FAMILY = PaliGemma()
