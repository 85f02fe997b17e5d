"""Gemma 3: a picture (or a pan-and-scan crop) is a unit; its tokens are patches averaged over squares."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .family import Family, Pictures, Unit


class Gemma3(Family):
    """The processor repeats the tokenizer's image token; its own `image_token` is the one that opens a picture."""

    processor = "Gemma3Processor"

    def units(self, pictures: Pictures) -> list[Unit]:
        side = pictures.base.multi_modal_projector.tokens_per_side
        return [Unit(side * side, (side, side)) for _ in range(len(pictures.pixels))]

    def scores(self, pictures: Pictures, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        projector = pictures.base.multi_modal_projector
        side = projector.patches_per_image
        return list(projector.avg_pool(attention.view(-1, 1, side, side)).flatten(1))

    def placeholder(self, processor: Any, modality: str) -> str:
        token: str = processor.tokenizer.image_token
        return token


FAMILY = Gemma3()
