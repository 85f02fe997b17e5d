"""Idefics3: a tile is a unit; its tokens are squares of patches, folded by pixel shuffle."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .family import Family, Unit, VisualInputs


class Idefics3(Family):
    """Images come as (prompts, tiles, 3, height, width), filled up with black tiles, which the model leaves out."""

    processor = "Idefics3Processor"
    least_tiles = 0

    def tower(self, base: Any, modality: str) -> Any:
        return base.vision_model

    def units(self, images: VisualInputs) -> list[Unit]:
        pixels = images.pixels
        tiles = int((pixels != 0).flatten(2).any(-1).sum())
        n = images.base.image_seq_len
        side = int(n**0.5)
        grid = (side, side) if side * side == n else None
        return [Unit(n, grid) for _ in range(max(self.least_tiles, tiles))]

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        connector = images.base.connector
        return list(connector.pixel_shuffle(attention.unsqueeze(-1), connector.scale_factor).sum(-1))

    def placeholder(self, processor: Any, modality: str) -> str:
        token: str = processor.image_token
        return token

    def counted_units(self, processor: Any, modality: str, tokens: int, patches: int, size: Any) -> list[int]:
        return [processor.image_seq_len] * patches


FAMILY = Idefics3()
