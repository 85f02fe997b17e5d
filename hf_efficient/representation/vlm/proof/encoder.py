"""Which layer of a vision encoder importance can be taken from, and what of its tokens each feature is made of.

It is no rule: a pair whose attention cannot be had is proven all the same, and takes importance from its features.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from hf_efficient.compat.torch import uncompiled_name
from hf_efficient.compat.transformers import dispatching_forward
from hf_efficient.representation.vlm.families import towers
from hf_efficient.representation.vlm.families.encoder import Encoder, shapes_of
from hf_efficient.representation.vlm.families.family import VisualInputs, encoded
from hf_efficient.representation.vlm.families.generic import Layout, geometry
from hf_efficient.representation.vlm.families.patch_map import PatchMap, Unclear, Unused, map_of, private, unit_of
from hf_efficient.representation.vlm.families.watch import Watch

from .look import Look
from .raster import find_raster
from .rules import units_of


def find_encoder(base: Any, processor: Any, language_model: nn.Module, looks: list[Look], layout: Layout) -> Encoder:
    """The encoder of a model without its head.

    Args:
        base: without a pruner.
        processor: without a pruner.
        language_model: the part of it that sees the features.
        looks: at pictures alone, then at a batch.
        layout: tells their units.

    Raises:
        Unclear: why importance cannot be taken from it.
    """
    smallest = min(looks[:-1], key=lambda look: sum(look.pieces))
    layers, around = called(base, language_model, smallest)
    first = layers[0]
    (layer, *behind), of_smallest = layers_of(smallest, layers, len(units_of(smallest, layout)))
    tower = next((name for name in around if layer.startswith(f"{name}.")), None)
    if tower is None or base.get_submodule(layer) not in towers.attention_layers(base.get_submodule(tower)):
        raise Unclear("the encoder around its attention is not called as a module")
    maps = [of_smallest if look is smallest else map_of(look.images, layer, behind) for look in looks]
    check_constants(looks, maps)
    check_fixed(looks, maps)
    sizes = [units_of(look, layout) for look in looks]
    parts = [
        unit_of(part, one_run=True) for found, own in zip(maps, sizes, strict=True) for part in found.images.split(own)
    ]
    tiles, breaks = any(u.groups is not None for u in parts), any(u.newline is not None for u in parts)
    raster = None if tiles or breaks else find_raster(processor, first, looks, maps, sizes)
    # several pictures in one row of an encoder must not see each other, which one picture alone cannot tell
    shown = smallest if len(maps[looks.index(smallest)].image.unique()) > 1 else looks[-1]
    sample, settings = shapes_of(shown.images.arguments), shown.images.settings()
    return Encoder(layer, tuple(behind), tower, sample, settings, tiles, breaks, raster)


def called(base: Any, language_model: nn.Module, look: Look) -> tuple[list[str], list[str]]:
    """The attention layers that encode a picture, of the kind that is most, in the order of their calls.

    And the modules that hold any of them and are called themselves, the outermost first.
    """
    inside = {id(module) for module in language_model.modules()}
    names = [
        uncompiled_name(name)
        for name, module in base.named_modules()
        if dispatching_forward(module) is not None and id(module) not in inside
    ]
    if not names:
        raise Unclear("its layers do not call attention through the interface of transformers")
    around = {name.rsplit(".", i)[0] for name in names for i in range(1, name.count(".") + 1)}
    own, order = private(base, base.get_submodule(names[0])), dict[str, None]()
    for name in {*names, *around}:
        own.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.setdefault(name, None))
    with torch.no_grad():
        encoded(VisualInputs(own, look.images.modality, look.images.arguments))
    kinds: dict[str, list[str]] = {}
    for name in order:
        if name in names:
            kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    outer = sorted((name for name in order if name in around), key=lambda name: name.count("."))
    return max(kinds.values(), key=len, default=[]), outer


def layers_of(look: Look, layers: list[str], units: int) -> tuple[list[str], PatchMap]:
    """Of these layers the last that features depend on and in which every picture sees all of itself, and those behind.

    And the map of this look by the first of them.

    Raises:
        Unclear: there is none.
    """
    for i, layer in reversed(list(enumerate(layers))):
        try:
            found = map_of(look.images, layer, layers[i + 1 :])
        except Unused:
            continue
        if parts(look, layer) <= max(len(found.image.unique()), units):
            return layers[i:], found
    raise Unclear("no layer of its encoder is used in which a picture sees all of itself")


def parts(look: Look, layer: str) -> int:
    """How many parts that see themselves alone a layer divides the tokens of a call into."""
    base = look.images.base
    own = private(base, base.get_submodule(layer))
    with torch.no_grad(), Watch(own.get_submodule(layer), "received") as watch:
        encoded(VisualInputs(own, look.images.modality, look.images.arguments))
    return sum(len(given.queries) if given.bounds is None else len(given.bounds) - 1 for given in watch.given)


def check_constants(looks: list[Look], maps: list[PatchMap]) -> None:
    """Raise unless features that come from no token are the same for all pictures."""
    empty = [look.flat[(found.images < 0).to(look.flat.device)] for look, found in zip(looks, maps, strict=True)]
    rows = torch.cat(empty)
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        raise Unclear("some features come from elsewhere")


def check_fixed(looks: list[Look], maps: list[PatchMap]) -> None:
    """Raise unless calls of the same shapes have the same map, whatever they show."""
    known: dict[Any, PatchMap] = {}
    for look, found in zip(looks, maps, strict=True):
        if not torch.equal(found.feature, known.setdefault(geometry(look.images), found).feature):
            raise Unclear("of which tokens they are made depends on more than shapes")
