"""Qwen2.5-VL: as Qwen2-VL, with an encoder that mostly looks through windows and orders its patches by them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_efficient.compat.transformers import window_order

from .family import VisualInputs
from .qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """Importance comes from the last block in which an image sees all of itself; the order of windows is undone."""

    processor = "Qwen2_5_VLProcessor"

    def block(self, base: Any) -> int:
        return int(max(base.visual.fullatt_block_indexes))

    def raster_order(self, images: VisualInputs, merged: Tensor) -> Any:
        order = window_order(images.arguments[f"{images.modality}_grid_thw"], images.base.visual)
        return order.argsort().to(merged.device)


FAMILY = Qwen25VL()
