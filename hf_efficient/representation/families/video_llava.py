"""Video-LLaVA: a picture or a frame is a unit; frames keep their [CLS] token as token 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import towers
from .family import Family, Unit, pixel_values


class VideoLlava(Family):
    """Pictures and frames have an encoder each."""

    processor = "VideoLlavaProcessor"

    def tower(self, base: Any, modality: str) -> Any:
        return base.image_tower if modality == "image" else base.video_tower

    def units(self, base: Any, call: dict[str, Any], modality: str) -> list[Unit]:
        if modality == "image":
            return super().units(base, call, modality)
        videos = pixel_values(call, modality)
        rows, columns = self.patch_grid(base, videos)
        n = rows * columns + towers.prefix_tokens(self.tower(base, modality))
        return [Unit(n) for _ in range(videos.shape[0] * videos.shape[1])]

    def scores(self, base: Any, call: dict[str, Any], modality: str, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        return super().scores(base, call, modality, attention, units) if modality == "image" else list(attention)

    def run_units(self, processor: Any, run: int, modality: str, inputs: Any, index: int) -> list[int]:
        if modality == "image":
            return [run]
        frames = len(inputs["pixel_values_videos"][index])
        return [run // frames] * frames


FAMILY = VideoLlava()
