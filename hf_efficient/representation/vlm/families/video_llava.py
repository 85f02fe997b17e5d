"""Video-LLaVA: an image or a frame is a unit; frames keep their [CLS] token as token 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import towers
from .family import Family, Unit, VisualInputs


class VideoLlava(Family):
    """Images and frames have an encoder each."""

    processor = "VideoLlavaProcessor"

    def tower(self, base: Any, modality: str) -> Any:
        return base.image_tower if modality == "image" else base.video_tower

    def units(self, images: VisualInputs) -> list[Unit]:
        if images.modality == "image":
            return super().units(images)
        videos = images.pixels
        rows, columns = self.patch_grid(images)
        n = rows * columns + towers.prefix_tokens(images.base.video_tower)
        return [Unit(n) for _ in range(videos.shape[0] * videos.shape[1])]

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        return super().scores(images, attention, units) if images.modality == "image" else list(attention)

    def run_units(self, processor: Any, run: int, modality: str, inputs: Any, index: int) -> list[int]:
        if modality == "image":
            return [run]
        frames = len(inputs["pixel_values_videos"][index])
        return [run // frames] * frames


FAMILY = VideoLlava()
