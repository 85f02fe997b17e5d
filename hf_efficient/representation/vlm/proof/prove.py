"""The proof: all rules, in their order, on pictures alone and then together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_efficient.modes import evaluating
from hf_efficient.representation.vlm.families.encoder import Encoder
from hf_efficient.representation.vlm.families.generic import Generic
from hf_efficient.representation.vlm.families.patch_map import Failed, Unclear

from .encoder import find_encoder
from .layout import layout_of
from .rules import check_batch, check_contract, check_features, first_position, look_at
from .samples import samples, to_model


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """A model in eval mode, of which every module has its own mode, hooks and `rope_deltas` again afterwards."""
    base = model.base_model
    hooks = {module: hooks_of(module) for module in model.modules()}
    deltas = {name: value for name, value in vars(base).items() if name == "rope_deltas"}
    try:
        with evaluating(model):
            yield
    finally:
        for module, before in hooks.items():
            put_back(module, before)
        vars(base).update(deltas)


def hooks_of(module: Any) -> dict[str, Any]:
    """The hooks of a module, and the mark that transformers has put its own there."""
    return {name: copy.copy(value) for name, value in vars(module).items() if "_hooks" in name}


def put_back(module: Any, hooks: dict[str, Any]) -> None:
    """Take away what was added to the hooks of a module: those of transformers cannot be pickled."""
    for name, now in hooks_of(module).items():
        if name not in hooks:
            delattr(module, name)
        elif isinstance(now, dict):
            for key in now.keys() - hooks[name].keys():
                del vars(module)[name][key]


@torch.no_grad()
def prove(model: Any, processor: Any) -> Generic:
    """The family of a stock model with its head and its stock processor, neither with a pruner.

    Raises:
        Unproven: the first rule that the pair does not keep, and what was found.
    """
    language_model = check_contract(model, processor)
    with undisturbed(model):
        looks = [look_at(model, language_model, *sample) for sample in samples(processor, to_model(model))]
        check_features(model, language_model, looks)
        layout = layout_of([(look.pieces, look.runs, len(look.shown)) for look in looks])
        check_batch(looks[:-1], looks[-1], layout)
        final = True
        try:
            encoder: Encoder | str = find_encoder(model.base_model, processor, language_model, looks, layout)
        except Unclear as error:
            encoder, final = str(error), not isinstance(error, Failed)
        except Exception as error:  # whatever an encoder raises: it is left alone then
            encoder, final = f"looking for it failed with {type(error).__name__}: {error}", False
    family = Generic(type(processor).__name__, looks[0].token, layout, first_position(model, looks), encoder)
    family.final = final
    return family
