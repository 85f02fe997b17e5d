"""LLaVA-NeXT: an image is a unit: an overview tile, then the rows of all tiles, each ended by a line-break token."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_efficient.compat.transformers import anyres_tiles

from . import towers
from .family import Family, Unit, VisualInputs


class LlavaNext(Family):
    """Anyres: how tiles become rows is asked of the stock model, by packing maps of our own in place of features."""

    processor = "LlavaNextProcessor"
    grouped: tuple[str, ...] = ("min_group_share",)

    def units(self, images: VisualInputs) -> list[Unit]:
        rows, columns = self.patch_grid(images)
        n = rows * columns + towers.prefix_tokens(images.base.vision_tower) - self.dropped(images)
        marks = [torch.arange(tiles).view(-1, 1).expand(-1, n) for tiles in self.tiles(images)]
        packed = self.pack(images, [mark.float() for mark in marks], newline=-1.0)
        return [anyres_unit(tile, overview=n if len(mark) > 1 else 0) for tile, mark in zip(packed, marks, strict=True)]

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        per_image = attention[:, self.dropped(images) :].split(self.tiles(images))
        return self.pack(images, list(per_image), newline=0.0)

    def tiles(self, images: VisualInputs) -> list[int]:
        """Tiles of every image, the overview counted."""
        return [anyres_tiles(size, images.base.config) for size in image_sizes(images)]

    def pack(self, images: VisualInputs, maps: list[Tensor], newline: float) -> list[Tensor]:
        """Maps (tiles, n) of every image as the model packs features: (N,) each, with `newline` for line breaks."""
        packed, _ = images.base.pack_image_features(
            [m.unsqueeze(-1) for m in maps],
            image_sizes(images),
            vision_feature_select_strategy=images.setting("vision_feature_select_strategy"),
            image_newline=torch.tensor([newline]),
        )
        return [m.squeeze(-1) for m in packed]


def image_sizes(images: VisualInputs) -> list[list[int]]:
    """Height and width of the images as they were given."""
    sizes = images.arguments["image_sizes"]
    return sizes.tolist() if isinstance(sizes, Tensor) else [list(map(int, size)) for size in sizes]


def anyres_unit(tile: Tensor, overview: int) -> Unit:
    """The unit of one packed image.

    Args:
        tile: (N,) tile of every token, -1 for line breaks.
        overview: tokens at the front that form no rows.
    """
    newline = tile < -0.5
    row = newline.long().cumsum(0) - newline.long()  # breaks before a token; a break ends its own row
    row[:overview] = -1
    # where rows were resized, a token between two tiles belongs to the nearer one
    return Unit(len(tile), groups=tile.round().long().clamp_min(0), row=row, newline=newline)


FAMILY = LlavaNext()
