"""Qwen3-VL: as Qwen2-VL, with features of early layers (deepstack), cut alike; every frame of a video is a unit."""

from __future__ import annotations

from typing import Any

from .family import Unit, VisualInputs
from .qwen2_vl import Qwen2VL, grids


class Qwen3VL(Qwen2VL):
    """The frames of a video stand apart in the prompt, with a time stamp before each."""

    processor = "Qwen3VLProcessor"
    grouped: tuple[str, ...] = ()

    def units(self, images: VisualInputs) -> list[Unit]:
        if images.modality == "image":
            return super().units(images)
        side = images.base.visual.spatial_merge_size
        return [
            Unit((rows // side) * (columns // side), (rows // side, columns // side))
            for time, rows, columns in grids(images)
            for _ in range(time)
        ]

    def counted_units(self, processor: Any, modality: str, tokens: int, patches: int, size: Any) -> list[int]:
        if modality == "image":
            return [tokens]
        step = processor.video_processor.temporal_patch_size
        times = -(-size[0] // step)
        return [tokens // times] * times


FAMILY = Qwen3VL()
