"""The questions a family answers, with the answers of plain LLaVA-like models as defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import towers

PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


@dataclass
class Unit:
    """One picture, tile, frame or video: the tokens among which the budget is spent. Known from shapes, before encoding.

    Args:
        n: its tokens, line breaks included.
        grid: rows and columns of the raster its tokens form, None where they form none.
        groups: (n,) long or None: tile or frame of every token, for quotas.
        row: (n,) long or None: for families that end rows of the raster with a line-break token, the row of every token,
            -1 for tokens outside of such rows.
        newline: (n,) bool or None: which tokens are line breaks.
    """

    n: int
    grid: tuple[int, int] | None = None
    groups: Tensor | None = None
    row: Tensor | None = None
    newline: Tensor | None = None


class Family:
    """How one family cuts pictures into units, and where their importance is found.

    `base` is the model without its head (`model.base_model`), `call` the named arguments of its `get_image_features` or
    `get_video_features`, `modality` "image" or "video".
    """

    processor = "LlavaProcessor"
    #: positions have axes (time, height, width): they are always kept
    mrope = False
    #: position id that the stock forward gives to the first token
    first_position = 0

    # -- model side

    def tower(self, base: Any, modality: str) -> Any:
        """The vision encoder."""
        return base.vision_tower

    def units(self, base: Any, call: dict[str, Any], modality: str) -> list[Unit]:
        """The units of a call, in the order of their features."""
        pixels = pixel_values(call, modality)
        rows, columns = self.patch_grid(base, pixels)
        n = rows * columns + towers.prefix_tokens(self.tower(base, modality)) - self.dropped(base, call)
        grid = (rows, columns) if n == rows * columns else None
        return [Unit(n, grid) for _ in range(len(pixels))]

    def scores(self, base: Any, call: dict[str, Any], modality: str, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        """Importance of the tokens of every unit from `attention` (pictures, tokens of the encoder)."""
        return list(attention[:, self.dropped(base, call) :])

    def attention(self, base: Any, call: dict[str, Any], modality: str, source: str) -> towers.AttentionWatch:
        """A context that, while the encoder runs in it, learns the attention `scores` will ask for.

        Args:
            source: "cls" or "received".
        """
        layer = setting(base, call, "vision_feature_layer")
        return towers.VitWatch(self.tower(base, modality), -1 if layer is None else layer, source)

    def source(self, base: Any, modality: str, wanted: str) -> str | None:
        """Where importance comes from: "cls", "received", or None where the features themselves must tell.

        Args:
            wanted: `TokenPrunerConfig.importance`.

        Raises:
            ValueError: the encoder cannot give what is wanted.
        """
        offers = towers.offers(self.tower(base, modality))
        if wanted == "auto":
            return offers[0] if offers else None
        if wanted in ("cls", "received") and wanted not in offers:
            raise ValueError(
                f"importance={wanted!r} cannot be had from {type(self.tower(base, modality)).__name__}; it offers: "
                f"{', '.join([*offers, 'distinct', 'norm'])}. importance='auto' takes the first."
            )
        return wanted if wanted in offers else None

    def patch_grid(self, base: Any, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of pictures (..., height, width)."""
        patch = base.config.vision_config.patch_size
        high, wide = (patch, patch) if isinstance(patch, int) else patch
        return pixels.shape[-2] // high, pixels.shape[-1] // wide

    def dropped(self, base: Any, call: dict[str, Any]) -> int:
        """Tokens of the encoder that are cut off its front before the projector."""
        return int(setting(base, call, "vision_feature_select_strategy") == "default")

    # -- processor side

    def placeholder(self, processor: Any, modality: str) -> str:
        """The token the processor repeats in the prompt."""
        token: str = getattr(processor, f"{modality}_token")
        return token

    def run_units(self, processor: Any, run: int, modality: str, inputs: Any, index: int) -> list[int]:
        """Sizes of the units that a run of `run` placeholders stands for.

        Args:
            inputs: what the processor made of all pictures or videos.
            index: which of them the run belongs to.
        """
        return [run]

    def counted_units(self, processor: Any, modality: str, tokens: int, patches: int, size: Any) -> list[int]:
        """Sizes of the units behind one entry of the processor's `_get_num_multimodal_tokens`.

        Args:
            tokens: placeholders and what frames them.
            patches: the processor's count of patches, which means tiles for some families.
            size: the size the count was asked for.
        """
        return [tokens]


def pixel_values(call: dict[str, Any], modality: str) -> Tensor:
    """The pixels among the arguments of a feature function."""
    found: Tensor = next(call[name] for name in PIXELS[modality] if call.get(name) is not None)
    return found


def setting(base: Any, call: dict[str, Any], name: str) -> Any:
    """An argument of the call, or what the model's config says where it is not given."""
    given = call.get(name)
    return getattr(base.config, name, None) if given is None else given


def frames(n: int, count: int) -> Tensor | None:
    """(n,) long: frame of every token of a video of `count` equal frames, None for a single one."""
    return torch.arange(n) // (n // count) if count > 1 else None
