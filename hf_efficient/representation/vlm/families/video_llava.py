"""Video-LLaVA: a picture or a frame is a unit; frames keep their [CLS] token as token 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import towers
from .family import Family, Pictures, Unit


class VideoLlava(Family):
    """Pictures and frames have an encoder each."""

    processor = "VideoLlavaProcessor"

    def tower(self, base: Any, modality: str) -> Any:
        return base.image_tower if modality == "image" else base.video_tower

    def units(self, pictures: Pictures) -> list[Unit]:
        if pictures.modality == "image":
            return super().units(pictures)
        videos = pictures.pixels
        rows, columns = self.patch_grid(pictures)
        n = rows * columns + towers.prefix_tokens(pictures.base.video_tower)
        return [Unit(n) for _ in range(videos.shape[0] * videos.shape[1])]

    def scores(self, pictures: Pictures, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        return super().scores(pictures, attention, units) if pictures.modality == "image" else list(attention)

    def run_units(self, processor: Any, run: int, modality: str, inputs: Any, index: int) -> list[int]:
        if modality == "image":
            return [run]
        frames = len(inputs["pixel_values_videos"][index])
        return [run // frames] * frames


FAMILY = VideoLlava()
