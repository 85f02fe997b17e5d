"""LLaVA-NeXT: a picture is a unit: an overview tile, then the rows of all tiles, each ended by a line-break token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from . import towers
from .family import Family, Unit, pixel_values, setting


class LlavaNext(Family):
    """Anyres: how tiles become rows is asked of the stock model, by packing maps of our own in place of features."""

    processor = "LlavaNextProcessor"

    def units(self, base: Any, call: dict[str, Any], modality: str) -> list[Unit]:
        rows, columns = self.patch_grid(base, pixel_values(call, modality))
        n = rows * columns + towers.prefix_tokens(self.tower(base, modality)) - self.dropped(base, call)
        marks = [torch.arange(tiles).view(-1, 1).expand(-1, n) for tiles in self.tiles(base, call)]
        packed = self.pack(base, call, [mark.float() for mark in marks], newline=-1.0)
        return [anyres_unit(tile, overview=n if len(mark) > 1 else 0) for tile, mark in zip(packed, marks, strict=True)]

    def scores(self, base: Any, call: dict[str, Any], modality: str, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        per_picture = attention[:, self.dropped(base, call) :].split(self.tiles(base, call))
        return self.pack(base, call, list(per_picture), newline=0.0)

    def tiles(self, base: Any, call: dict[str, Any]) -> list[int]:
        """Tiles of every picture, the overview counted."""
        config = base.config
        size = config.vision_config.image_size
        return [image_size_to_num_patches(s, config.image_grid_pinpoints, size) for s in image_sizes(call)]

    def pack(self, base: Any, call: dict[str, Any], maps: list[Tensor], newline: float) -> list[Tensor]:
        """Maps (tiles, n) of every picture as the model packs features: (N,) each, with `newline` for line breaks."""
        packed, _ = base.pack_image_features(
            [m.unsqueeze(-1) for m in maps],
            image_sizes(call),
            vision_feature_select_strategy=setting(base, call, "vision_feature_select_strategy"),
            image_newline=torch.tensor([newline]),
        )
        return [m.squeeze(-1) for m in packed]


def image_sizes(call: dict[str, Any]) -> list[list[int]]:
    """Height and width of the pictures as they were given."""
    sizes = call["image_sizes"]
    return sizes.tolist() if isinstance(sizes, Tensor) else [list(map(int, size)) for size in sizes]


def anyres_unit(tile: Tensor, overview: int) -> Unit:
    """The unit of one packed picture.

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
