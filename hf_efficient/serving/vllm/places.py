"""Where kept tokens stand in their picture or video, for M-RoPE: beside the token, in columns behind its features.

vLLM numbers a prompt before its pictures are encoded, when it is not known what will be kept. How far a picture moves
the text behind it depends on its raster alone, so all text can be numbered at once, and every placeholder gets the
number of its picture's first token. What is missing, a token's own (time, height, width), comes with its features, in
columns that are taken off and added to its position when the model runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COLUMNS = 6  # (time, height, width), in two digits each
BASE = 128  # of the digits: whole numbers to 256 are exact in bfloat16


def with_places(
    model: Any, modality: str, arguments: dict[str, Any], tokens: list[Tensor], kept: list[Tensor] | None, frames: bool
) -> list[Tensor]:
    """Tokens (K, D) of every picture or video with their places in it: (K, D + COLUMNS).

    Args:
        model: of vLLM.
        modality: "image" or "video".
        arguments: of the call of `embed_multimodal`.
        tokens: (K, D) of every picture or video.
        kept: (K,) of every one, places among all its tokens; None where all are there.
        frames: whether frames of videos stand apart in the prompt, each with time 0.
    """
    made = []
    grids = arguments[f"{modality}_grid_thw"].tolist()
    for i, (x, grid) in enumerate(zip(tokens, grids, strict=True)):
        time, rows, columns = merged(grid, model)
        step = 0.0 if frames else time_step(model, modality, arguments.get("second_per_grid_ts"), i)
        places = raster(time, rows, columns, step)
        if kept is not None:
            places = places[kept[i].to(places.device)]
        made.append(torch.cat([x, digits(places).to(x)], 1))
    return made


def merged(grid: list[int], model: Any) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens, of those of patches."""
    side = model.config.vision_config.spatial_merge_size
    return grid[0], grid[1] // side, grid[2] // side


def time_step(model: Any, modality: str, seconds: Any, index: int = 0) -> float:
    """Positions from one frame of tokens to the next: 1, or in Qwen2.5-VL what its seconds make."""
    rate = getattr(model.config.vision_config, "tokens_per_second", None)
    if modality == "image" or rate is None or seconds is None:
        return 1.0 if rate is None or modality == "image" else float(rate)
    return float(torch.as_tensor(seconds).flatten()[index]) * rate


def raster(time: int, rows: int, columns: int, step: float) -> Tensor:
    """(time * rows * columns, 3) long: (time, height, width) of every token in units of positions."""
    axes = torch.arange(time), torch.arange(rows), torch.arange(columns)
    places = torch.cartesian_prod(*axes).view(-1, 3)
    places[:, 0] = (places[:, 0] * step).long()
    return places


def digits(places: Tensor) -> Tensor:
    """(K, 3) whole numbers below BASE² as (K, COLUMNS) numbers that every float holds exactly."""
    return torch.stack([places // BASE, places % BASE], -1).flatten(1)


def numbers(columns: Tensor) -> Tensor:
    """(3, K) long of (K, COLUMNS), what `digits` made."""
    pairs = columns.long().unflatten(1, (3, 2))
    return (pairs[..., 0] * BASE + pairs[..., 1]).T
