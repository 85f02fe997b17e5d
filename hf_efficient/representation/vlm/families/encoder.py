"""Where the attention of a model is read that has no file: a layer of its vision encoder, and a call to try it on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import towers, trial
from .family import VisualInputs, encoded
from .patch_map import private
from .raster import Raster


class Reached(Exception):
    """A module is called, with these arguments."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.given, self.named = args, kwargs


@dataclass(frozen=True)
class Encoder:
    """A vision encoder as a proof has found it. Names are those of modules in the model without its head.

    Args:
        layer: the attention layer whose attention is importance.
        behind: the attention layers after it.
        tower: the encoder it is a part of.
        sample: arguments of a call of `get_image_features`; numbers with a point have a shape alone (meta device).
        settings: what was true of such calls by the model's config, such as the layer that features come from.
        tiles: whether there are units that hold several tiles.
        breaks: whether there are units with line breaks.
        raster: the rule for rows and columns of units; None if there is none.
    """

    layer: str
    behind: tuple[str, ...]
    tower: str
    sample: dict[str, Any]
    settings: dict[str, Any]
    tiles: bool
    breaks: bool
    raster: Raster | None

    def offers(self, base: Any) -> tuple[tuple[str, ...], str | None]:
        """As `trial.offers`, of the encoder of a model (without its head)."""
        tower, layer = base.get_submodule(self.tower), base.get_submodule(self.layer)
        place = towers.attention_layers(tower).index(layer)
        return trial.offers(tower, place, functools.partial(self.run, base, layer))

    def run(self, base: Any, layer: nn.Module, tower: nn.Module) -> None:
        """Run `tower`, the encoder or its twin, as the model would on pictures of noise."""
        own: Any = private(base, layer)
        own.get_submodule(self.tower).register_forward_pre_hook(tell, with_kwargs=True)
        pixels = {name: self._noise(tower, value) for name, value in self.sample.items()}
        try:
            encoded(VisualInputs(own, "image", pixels))
        except Reached as call:
            tower(*call.given, **call.named)

    @staticmethod
    def _noise(tower: nn.Module, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return trial.noise(tower, *value.shape) if value.is_meta else value.to(next(tower.parameters()).device)


def shapes_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call as `Encoder.sample` holds them."""
    return {
        name: value
        if not isinstance(value, Tensor)
        else torch.empty_like(value, device="meta")
        if value.is_floating_point()
        else value.cpu()
        for name, value in arguments.items()
    }


def tell(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A hook before a module: raises what it is called with."""
    raise Reached(args, kwargs)
