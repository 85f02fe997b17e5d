"""LLaVA-OneVision: an image is a unit as in LLaVA-NeXT; among several in a prompt, one tile and one line break.

A video is one unit too: its frames, pooled to a quarter of their tokens, and one line break at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .family import Unit, VisualInputs, frames
from .llava_next import LlavaNext, anyres_unit, image_sizes


class LlavaOnevision(LlavaNext):
    """Anyres with at most `anyres_max_<m>` tiles' worth of tokens, beyond which the model resizes the feature map."""

    processor = "LlavaOnevisionProcessor"
    grouped: tuple[str, ...] = ("min_group_share", "merge_static")

    def units(self, images: VisualInputs) -> list[Unit]:
        if images.modality == "image":
            return super().units(images)
        videos = images.pixels
        rows, columns = ((side + 1) // 2 for side in self.patch_grid(images))
        frame = torch.zeros(rows * columns * videos.shape[1])
        units = []
        for _ in range(len(videos)):
            unit = anyres_unit(torch.cat([frame, torch.tensor([-1.0])]), overview=0)
            shown = frames(len(frame), videos.shape[1])
            unit.groups = None if shown is None else torch.cat([shown, shown[-1:]])
            units.append(unit)
        return units

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        if images.modality == "image":
            return super().scores(images, attention, units)
        patches = attention[:, self.dropped(images) :].unsqueeze(-1)
        pooled = images.base.apply_pooling(patches).squeeze(-1)
        videos = pooled.reshape(len(units), -1)
        return list(torch.cat([videos, videos.new_zeros(len(units), 1)], dim=1))

    def tiles(self, images: VisualInputs) -> list[int]:
        counts = super().tiles(images)
        together = images.arguments.get("batch_num_images")
        if together is None:
            return counts
        alone = [n == 1 for n in torch.as_tensor(together).tolist() for _ in range(n)]
        return [count if single else 1 for count, single in zip(counts, alone, strict=True)]

    def pack(self, images: VisualInputs, maps: list[Tensor], newline: float) -> list[Tensor]:
        packed, _ = images.base.pack_image_features(
            [m.unsqueeze(-1) for m in maps],
            image_sizes(images),
            image_newline=torch.tensor([newline]),
            vision_aspect_ratio=images.setting("vision_aspect_ratio"),
        )
        return [m.squeeze(-1) for m in packed]


FAMILY = LlavaOnevision()
