"""Qwen2-VL: an image or a video is a unit; a token is a square of merged patches; positions are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.compat.transformers import raster_of
from hf_efficient.representation.maths.copies import LEFT, NOTHING, UP, Copies, copied_from

from . import trial
from .family import Family, Unit, VisualInputs, frames

ROUNDING = 1e-5  # of pixel values in [0, 1], of which a level of 255 is 0.0039


class Qwen2VL(Family):
    """The encoder runs all images as one sequence, in which patches see those of their own image or frame only."""

    processor = "Qwen2VLProcessor"
    mrope = True
    grouped: tuple[str, ...] = ("min_group_share", "merge_static")
    merges_copies = True

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

    def layer(self, base: Any, asked: Any = None) -> int:
        """The block whose attention counts: the last in which an image sees all of itself."""
        return len(base.visual.blocks) - 1

    def try_encoder(self, base: Any, encoder: Any) -> None:
        side, config = encoder.spatial_merge_size, base.config.vision_config
        grid = torch.tensor([[1, side, 2 * side], [1, 2 * side, 2 * side]])
        values = getattr(config, "in_channels", 3) * config.temporal_patch_size * config.patch_size**2
        pixels = trial.noise(encoder, int(grid.prod(1).sum()), values)
        encoder(pixels, grid_thw=grid.to(pixels.device))

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        merged = attention.view(-1, images.base.visual.spatial_merge_size**2).sum(-1)
        return list(merged[self.raster_order(images, merged)].split([unit.n for unit in units]))

    def raster_order(self, images: VisualInputs, merged: Tensor) -> Any:
        """Index that brings merged patches from the encoder's order to that of the features."""
        return slice(None)

    def mark_copies(self, pixels: Tensor, grid: list[int], side: int, tolerance: float, std: Sequence[float]) -> int:
        # The first value of a cell that will not be encoded is free to say what the cell is a copy of; infinities
        # survive every cast, so that processor and model agree whatever happens to the pixels between them.
        cells = pixels.reshape(grid[1] // side, grid[2] // side, -1)
        limits = None
        if tolerance:
            channels = (tolerance + ROUNDING) / torch.tensor(std, dtype=pixels.dtype, device=pixels.device)
            limits = channels.repeat_interleave(pixels.shape[1] // len(std)).repeat(side * side)
        ways = copied_from(cells, limits).flatten()
        for way, mark in ((LEFT, -math.inf), (UP, math.inf)):
            pixels[(ways == way).nonzero().squeeze(1) * side * side, 0] = mark
        return int((ways == NOTHING).sum())

    def with_copies(self, images: VisualInputs, units: list[Unit]) -> list[Unit]:
        side = images.base.visual.spatial_merge_size
        marks = images.pixels[:: side * side, 0]
        if images.modality != "image" or not bool(marks.isinf().any()):
            return units
        found = []
        for unit, own in zip(units, marks.split([unit.n for unit in units]), strict=True):
            assert unit.grid is not None  # an image is one frame
            ways = torch.where(own == -math.inf, LEFT, NOTHING) + torch.where(own == math.inf, UP, NOTHING)
            found.append(replace(unit, copies=Copies.of(ways, unit.grid[1])) if bool(own.isinf().any()) else unit)
        return found

    def without_copies(self, images: VisualInputs, units: list[Unit]) -> VisualInputs:
        side, prefix, pixels = images.base.visual.spatial_merge_size, images.modality, images.pixels
        keep = torch.ones(sum(unit.n for unit in units), dtype=torch.bool, device=pixels.device)
        for unit, own in zip(units, keep.split([unit.n for unit in units]), strict=True):
            if unit.copies is not None:
                own.fill_(False)[unit.copies.cells] = True
        # what the encoder computes of the true raster is given ready made; a raster of one row of cells tells the rest
        grid = images.arguments[f"{prefix}_grid_thw"]
        rows = [[1, side, side * unit.encoded] for unit in units]
        arguments = {**images.arguments, f"{prefix}_grid_thw": torch.tensor(rows, device=grid.device)}
        name = next(name for name, value in arguments.items() if value is pixels)
        arguments[name] = pixels[keep.repeat_interleave(side * side)]
        layout = {f"{prefix}_{name}": value for name, value in self.layout(images, keep).items()}
        return replace(images, arguments={**arguments, **layout})

    def layout(self, images: VisualInputs, keep: Tensor) -> dict[str, Tensor]:
        """What the encoder computes from the rasters of images, of those merged patches (N,) that `keep` names."""
        grid, encoder = images.arguments[f"{images.modality}_grid_thw"], images.base.visual
        bounds, patches = raster_of(grid, encoder)
        rows = keep.to(grid.device).repeat_interleave(encoder.spatial_merge_size**2)
        return {**{name: value[rows] for name, value in patches.items()}, "cu_seqlens": fewer(bounds, rows)}


def fewer(bounds: Tensor, keep: Tensor) -> Tensor:
    """Bounds of stretches of patches, (stretches + 1,) int32, where of the patches only those of `keep` (N,) stay."""
    return F.pad(keep.cumsum(0, dtype=bounds.dtype), (1, 0))[bounds.long()]


def grids(images: VisualInputs) -> list[list[int]]:
    """(time, height, width) in patches of every image or video."""
    found: list[list[int]] = images.arguments[f"{images.modality}_grid_thw"].tolist()
    return found


FAMILY = Qwen2VL()
