"""Qwen2-VL: an image or a video is a unit; a token is a square of merged patches; positions are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths import importance

from . import towers
from .family import Family, Unit, VisualInputs, frames


class Qwen2VL(Family):
    """The encoder runs all images as one sequence, in which patches see those of their own image or frame only."""

    processor = "Qwen2VLProcessor"
    mrope = True
    grouped: tuple[str, ...] = ("min_group_share", "merge_static")

    def tower(self, base: Any, modality: str) -> Any:
        return base.visual

    def units(self, images: VisualInputs) -> list[Unit]:
        side = images.base.visual.spatial_merge_size
        units = []
        for time, rows, columns in grids(images):
            grid = (rows // side, columns // side)
            n = time * grid[0] * grid[1]
            units.append(Unit(n, grid if time == 1 else None, frames(n, time)))
        return units

    def source(self, base: Any, modality: str, wanted: str) -> str | None:
        return towers.choose_source(wanted, ("received",), type(base.visual).__name__)

    def attention(self, images: VisualInputs, source: str) -> towers.AttentionWatch:
        base = images.base
        return QwenWatch(base.visual.blocks[self.block(base)].attn)

    def block(self, base: Any) -> int:
        """The encoder block whose attention counts: the last in which an image sees all of itself."""
        return len(base.visual.blocks) - 1

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        merged = attention.view(-1, images.base.visual.spatial_merge_size**2).sum(-1)
        return list(merged[self.raster_order(images, merged)].split([unit.n for unit in units]))

    def raster_order(self, images: VisualInputs, merged: Tensor) -> Any:
        """Index that brings merged patches from the encoder's order to that of the features."""
        return slice(None)


class QwenWatch(towers.Watch):
    """Attention received in one block with a fused `qkv` and rotary positions, image by image."""

    def __init__(self, module: Any) -> None:
        super().__init__({"qkv": module.qkv}, module)
        self.module = module

    def called(self, kwargs: dict[str, Any]) -> None:
        self.seen["lengths"] = kwargs["cu_seqlens"].diff().tolist()
        self.seen["rotary"] = kwargs["position_embeddings"]

    @torch.no_grad()
    def result(self) -> Tensor:
        """(patches,) float32, in the order the encoder holds them; sums to 1 over every image or frame."""
        qkv = self.seen["qkv"]
        q, k, _ = qkv.view(len(qkv), 3, self.module.num_heads, -1).unbind(1)
        q, k = (rotate(x, *self.seen["rotary"]).transpose(0, 1) for x in (q, k))
        parts = zip(q.split(self.seen["lengths"], 1), k.split(self.seen["lengths"], 1), strict=True)
        scale = float(self.module.scaling)
        return torch.cat([importance.received_attention(a[None], b[None], scale)[0] for a, b in parts])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (patches, heads, d), halves of d paired; cos and sin (patches, d)."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x.float() * cos.float().unsqueeze(1) + turned * sin.float().unsqueeze(1)).to(x.dtype)


def grids(images: VisualInputs) -> list[list[int]]:
    """(time, height, width) in patches of every image or video."""
    found: list[list[int]] = images.arguments[f"{images.modality}_grid_thw"].tolist()
    return found


FAMILY = Qwen2VL()
