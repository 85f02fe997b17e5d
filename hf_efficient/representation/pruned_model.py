"""The model's side of an attached pair: K features where the stock model makes N, and the positions they have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .attached import Attached, Saved
from .config import TokenPrunerConfig
from .families.family import PIXELS, Pictures
from .inputs import MODALITIES, Prompt, pictures_of, restore
from .kept import KeptUnit
from .pruner import TokenPruner, cached_length, kept_units
from .sized_attention import size_own_mask


class PrunedGeneration(Saved):
    """A generation class that encodes before it numbers the prompt, since positions depend on what is kept."""

    base_model: Any

    def _pruner_config(self) -> TokenPrunerConfig:
        config: TokenPrunerConfig = self.base_model.token_pruner.config
        return config

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        stock: Any = super()
        self.base_model.token_pruner.generating = True
        try:
            return stock.generate(*args, **kwargs)
        finally:
            self.base_model.token_pruner.generating = False

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        stock: Any = super()
        pruner: TokenPruner = self.base_model.token_pruner
        ids = prompt_ids(inputs_tensor, model_kwargs)
        if ids is None:
            return stock._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        grids = {k: v for k, v in model_kwargs.items() if k.endswith("_grid_thw")}
        past = cached_length(model_kwargs)
        encodes = self._encode_prompt(ids, model_kwargs)
        if past and encodes and pruner.keeps_positions:
            raise ValueError(
                "New pictures after a cache that is not empty cannot keep their positions. Pass the whole conversation "
                "and all its pictures without past_key_values."
            )
        kept = kept_units(model_kwargs.get("mm_encoder_outputs"))
        if past or not kept or not pruner.keeps_positions:
            positions = stock._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
            if not past:
                pruner.shift = None
            elif pruner.keeps_text_positions and pruner.shift is not None:
                positions = positions + pruner.shift
            return positions
        if not pruner.family.mrope:
            prompt = Prompt.of(self.base_model, ids, model_kwargs.get("attention_mask"))
            full = restore(prompt, kept)
            pruner.shift = full.dropped[:, None]
            known = {k: v for k, v in model_kwargs.items() if k != "input_ids"} | {"attention_mask": full.mask}
            return full.gather(stock._prepare_position_ids_for_generation(full.ids, known))
        pruner.kept = kept
        try:
            return stock._prepare_position_ids_for_generation(inputs_tensor, {**model_kwargs, **grids})
        finally:
            pruner.kept = {}

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        # does nothing after the above; but that is not asked where the caller brings positions
        stock: Any = super()
        ids = prompt_ids(inputs_tensor, model_kwargs)
        if ids is not None:
            self._encode_prompt(ids, model_kwargs)
            self._note_prompt(ids, model_kwargs)
        return stock._maybe_prepare_encoder_kwargs_for_generation(inputs_tensor, model_kwargs, *args, **kwargs)

    def _note_prompt(self, ids: Tensor, model_kwargs: dict[str, Any]) -> None:
        """Tell the language model of the whole prompt, before beams and chunks take it apart."""
        base, past, mask = self.base_model, cached_length(model_kwargs), model_kwargs.get("attention_mask")
        if past and (mask is None or mask.shape[1] == ids.shape[1]):
            ids = ids[:, past:]
        base.token_pruner.note(base, ids, mask, kept_units(model_kwargs.get("mm_encoder_outputs")), past)

    def _encode_prompt(self, ids: Tensor, model_kwargs: dict[str, Any]) -> bool:
        """Encode what pixels there are, in place in `model_kwargs`; whether there were any."""
        base, mask = self.base_model, model_kwargs.get("attention_mask")
        if not pictures_of(base, model_kwargs):
            return False
        past = cached_length(model_kwargs)
        if past and (mask is None or mask.shape[1] == ids.shape[1]):  # the prompt repeats what is in the cache
            ids, mask = ids[:, past:], None if mask is None else mask[:, past:]
        pruner: TokenPruner = base.token_pruner
        pruner.prompt, pruner.last = Prompt.of(base, ids, mask), []
        try:
            pruner.check(base, pruner.prompt, model_kwargs)
            self._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)  # type: ignore[attr-defined]
        finally:
            pruner.prompt = None
        return True


def prompt_ids(inputs_tensor: Any, model_kwargs: dict[str, Any]) -> Tensor | None:
    """The prompt's ids from the two places where generate() may have them."""
    ids = model_kwargs.get("input_ids")
    ids = inputs_tensor if ids is None or ids.shape[1] == 0 else ids
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point() else None


class PrunedBase(Attached):
    """A base model that gives K features per unit, and the positions they have."""

    token_pruner: TokenPruner

    @classmethod
    def overrides(cls, stock: Any) -> dict[str, Any]:
        """Functions whose stock signature must stay visible, since generate() picks arguments by it."""
        made = {"forward": pruned_forward(stock.forward)}
        for modality in MODALITIES:
            name = f"get_{modality}_features"
            if hasattr(stock, name):
                made[name] = pruned_features(getattr(stock, name), modality)
        if hasattr(stock, "get_rope_index"):
            made["get_rope_index"] = pruned_rope_index(stock.get_rope_index)
        return made


def pruned_features(stock: Callable[..., Any], modality: str) -> Callable[..., Any]:
    """`get_image_features` or `get_video_features`, pruned, with the signature generate() looks at."""
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def features(self: Any, *args: Any, **kwargs: Any) -> Any:
        pruner = self.token_pruner
        if pruner.encoding:  # some families encode videos with their function for pictures
            return stock(self, *args, **kwargs)
        call = signature.bind(self, *args, **kwargs).arguments
        call |= call.pop("kwargs", {})
        call.pop("self")
        as_dict = call.pop("return_dict", None)
        pruner.encoding = True
        try:
            output = pruner.encode(functools.partial(stock, self), Pictures(self, modality, call))
        finally:
            pruner.encoding = False
        return output.to_tuple() if as_dict is False else output

    return features


def pruned_rope_index(stock: Callable[..., Any]) -> Callable[..., Any]:
    """`get_rope_index` of M-RoPE families: that of the full prompt, of the tokens that are kept."""
    names = [name for name in inspect.signature(stock).parameters if name != "self"]

    @functools.wraps(stock)
    def get_rope_index(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        pruner = self.token_pruner
        if not pruner.kept:
            return stock(self, **call)  # type: ignore[no-any-return]
        prompt = Prompt.of(self, call["input_ids"], call.get("attention_mask"))
        full = restore(prompt, pruner.kept, call["mm_token_type_ids"])
        call |= {"input_ids": full.ids, "mm_token_type_ids": full.types, "attention_mask": full.mask}
        positions, deltas = stock(self, **call)
        return full.gather(positions), deltas + full.dropped[:, None]

    return get_rope_index


def pruned_forward(stock: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` of a base model: encode, then what follows from what is kept, then the stock forward."""
    names = [name for name in inspect.signature(stock).parameters if name not in ("self", "kwargs")]

    @functools.wraps(stock)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        pruner = self.token_pruner
        given = call.get("mm_encoder_outputs") is not None
        if call.get("input_ids") is not None and not given and any(call.get(p) is not None for p in ALL_PIXELS):
            encode_call(self, call)
        kept = kept_units(call.get("mm_encoder_outputs"))
        if (pruner.size_aware or pruner.layers is not None) and not pruner.generating:
            note_call(self, call, kept)
        if pruner.keeps_text_positions and (kept or call.get("position_ids") is None):
            number_call(self, call, kept)
        if not (kept and pruner.family.mrope):
            return stock(self, **call)
        pruner.kept = kept  # for get_rope_index
        try:
            return stock(self, **call)
        finally:
            pruner.kept = {}

    return forward


ALL_PIXELS = tuple(name for names in PIXELS.values() for name in names)


@torch.compiler.disable
def encode_call(base: Any, call: dict[str, Any]) -> None:
    """Replace the pixels of a forward call by `mm_encoder_outputs`, in place."""
    pruner = base.token_pruner
    pruner.prompt, pruner.last = Prompt.of(base, call["input_ids"], call.get("attention_mask")), []
    try:
        pruner.check(base, pruner.prompt, call)
        outputs = {p.modality: p.function()(**p.arguments, return_dict=True) for p in pictures_of(base, call)}
    finally:
        pruner.prompt = None
    for name in ALL_PIXELS:
        call.pop(name, None)
    call["mm_encoder_outputs"] = outputs


@torch.compiler.disable
def note_call(base: Any, call: dict[str, Any], kept: dict[str, list[KeptUnit]]) -> None:
    """Tell the language model of the prompt of a forward call; in place where the call brings its own mask."""
    if call.get("input_ids") is not None:
        base.token_pruner.note(base, call["input_ids"], call.get("attention_mask"), kept, cached_length(call))
    call["attention_mask"] = size_own_mask(base, call.get("attention_mask"))


@torch.compiler.disable
def number_call(base: Any, call: dict[str, Any], kept: dict[str, list[KeptUnit]]) -> None:
    """Give a forward call the one-axis positions of the unpruned prompt, in place."""
    pruner, ids, past = base.token_pruner, call.get("input_ids"), cached_length(call)
    if ids is not None and call.get("position_ids") is None:
        if past and pruner.shift is not None:
            call["position_ids"] = torch.arange(ids.shape[1], device=ids.device) + past + pruner.shift
        elif kept and not past:
            full = restore(Prompt.of(base, ids, call.get("attention_mask")), kept)
            pruner.shift = full.dropped[:, None]
            every = torch.arange(full.ids.shape[1], device=ids.device) + pruner.family.first_position
            call["position_ids"] = full.gather(every[None])
        elif not past:
            pruner.shift = None
    positions = call.get("position_ids")
    bare = call.get("attention_mask") is None and call.get("past_key_values") is None
    if kept and positions is not None and bare and not bool((positions.diff(dim=-1) <= 0).any()):
        # without mask and cache, transformers takes gaps for borders between packed sequences
        call["attention_mask"] = torch.ones(positions.shape, dtype=torch.long, device=positions.device)
