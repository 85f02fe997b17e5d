"""Qwen2.5-VL: as Qwen2-VL, with an encoder that mostly looks through windows and orders its patches by them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.compat.transformers import windows_of

from .family import VisualInputs
from .qwen2_vl import Qwen2VL, fewer


class Qwen25VL(Qwen2VL):
    """Importance comes from the last block in which an image sees all of itself; the order of windows is undone."""

    processor = "Qwen2_5_VLProcessor"

    def layer(self, base: Any, asked: Any = None) -> int:
        return int(max(base.visual.fullatt_block_indexes))

    def raster_order(self, images: VisualInputs, merged: Tensor) -> Any:
        order = images.arguments.get(f"{images.modality}_window_index")
        if order is None:
            order = windows_of(images.arguments[f"{images.modality}_grid_thw"], images.base.visual)[0]
        return order.argsort().to(merged.device)

    def layout(self, images: VisualInputs, keep: Tensor) -> dict[str, Tensor]:
        order, bounds = windows_of(images.arguments[f"{images.modality}_grid_thw"], images.base.visual)
        keep = keep.to(order.device)
        stays = keep[order]
        patches = stays.repeat_interleave(images.base.visual.spatial_merge_unit).to(bounds.device)
        return {
            **super().layout(images, keep),
            "window_index": (keep.long().cumsum(0) - 1)[order[stays]],
            # windows of copies alone are no windows any more
            "cu_window_seqlens": torch.unique_consecutive(fewer(bounds, patches)),
        }


FAMILY = Qwen25VL()
