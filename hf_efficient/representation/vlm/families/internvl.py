"""InternVL: a tile or a frame is a unit; its tokens are squares of patches, folded by pixel shuffle."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .family import Family, Unit, VisualInputs


class InternVL(Family):
    """The tiles of an image share one run of placeholders; videos are shown as images."""

    processor = "InternVLProcessor"

    def units(self, images: VisualInputs) -> list[Unit]:
        ratio = images.base.config.downsample_ratio
        rows, columns = (int(side * ratio) for side in self.patch_grid(images))
        return [Unit(rows * columns, (rows, columns)) for _ in range(len(images.pixels))]

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        patches = attention[:, self.dropped(images) :]
        side = int(patches.shape[1] ** 0.5)
        base, raster = images.base, patches.view(-1, side, side, 1)
        folded = base.pixel_shuffle(raster, scale_factor=base.config.downsample_ratio)
        return list(folded.sum(-1).flatten(1))

    def placeholder(self, processor: Any, modality: str) -> str:
        token: str = processor.image_token
        return token

    def run_units(self, processor: Any, run: int, modality: str, inputs: Any, index: int) -> list[int]:
        return [processor.image_seq_length] * (run // processor.image_seq_length)

    def counted_units(self, processor: Any, modality: str, tokens: int, patches: int, size: Any) -> list[int]:
        return [processor.image_seq_length] * patches


FAMILY = InternVL()
