"""PaliGemma: an image is a unit; importance is the attention received in the last SigLIP layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .family import Family, VisualInputs


class PaliGemma(Family):
    """The stock forward counts positions from 1."""

    processor = "PaliGemmaProcessor"
    first_position = 1
    features: tuple[str, ...] = ("projected", "encoder")

    def encoded(self, images: VisualInputs, output: Any) -> Tensor:
        states: Tensor = output.last_hidden_state
        return states


FAMILY = PaliGemma()
