"""Gemma 3: an image (or a pan-and-scan crop) is a unit; its tokens are patches averaged over squares."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .family import Family, Unit, VisualInputs


class Gemma3(Family):
    """The processor repeats the tokenizer's image token; its own `image_token` is the one that opens an image."""

    processor = "Gemma3Processor"

    def units(self, images: VisualInputs) -> list[Unit]:
        side = images.base.multi_modal_projector.tokens_per_side
        return [Unit(side * side, (side, side)) for _ in range(len(images.pixels))]

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        projector = images.base.multi_modal_projector
        side = projector.patches_per_image
        return list(projector.avg_pool(attention.view(-1, 1, side, side)).flatten(1))

    def placeholder(self, processor: Any, modality: str) -> str:
        token: str = processor.tokenizer.image_token
        return token


FAMILY = Gemma3()
