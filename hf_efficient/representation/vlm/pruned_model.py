"""The model's side of an attached pair: K features where the stock model makes N, and the positions they have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin

from hf_efficient.compat.transformers import cache_of
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.decoder.caches import call_of, keep_on
from hf_efficient.representation.vlm.decoder.calls import ARGUMENT, Call, current, under_way
from hf_efficient.representation.vlm.decoder.layer_pruning import DROPS
from hf_efficient.representation.vlm.decoder.numbering import mrope_positions, number, visible_ids
from hf_efficient.representation.vlm.decoder.proportional_attention import (
    check_attention,
    keep_attention,
    size_own_mask,
)
from hf_efficient.representation.vlm.decoder.rope import sizes_of
from hf_efficient.representation.vlm.families.counting import encoding_once
from hf_efficient.representation.vlm.families.family import MODALITIES, PIXELS, VisualInputs
from hf_efficient.wrapped import follow_peft

from .attached import Attached, Saved, prunes_nothing
from .kept import KeptUnit
from .prompt import Prompt, images_of, restore
from .pruner import TokenPruner, cached_length, kept_units


class PrunedGeneration(Saved):
    """A generation class that encodes before it numbers the prompt, since positions depend on what is kept."""

    base_model: Any

    @property
    def token_pruner(self) -> TokenPruner:
        """The pruner of the base model; it can be asked of any wrapper around this model, too."""
        pruner: TokenPruner = self.base_model.token_pruner
        return pruner

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "peft_config":  # PEFT makes a model around this one, and saves it in its own way
            follow_peft()
        super().__setattr__(name, value)

    def _pruner_config(self) -> TokenPrunerConfig:
        return self.token_pruner.config

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        stock: Any = super()
        call = Call()
        with under_way(self.base_model, call):
            result = stock.generate(*args, **kwargs)
        for cache in (cache_of(result), cache_of(kwargs)):
            if isinstance(cache, Cache):
                keep_on(cache, call)
        self.token_pruner.latest.tell(call)
        return result

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        stock: Any = super()
        inputs = stock.prepare_inputs_for_generation(*args, **kwargs)
        call = current(self.base_model)
        if call is not None and self.token_pruner.reads_prompts:
            inputs[ARGUMENT] = call
        return inputs

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> Any:
        stock: Any = super()
        choose = functools.partial(stock.set_attn_implementation, *args, **kwargs)
        return keep_attention(self, self.base_model, self.token_pruner.reads_prompts, choose)

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        stock: Any = super()
        base, pruner = self.base_model, self.token_pruner
        ids = prompt_ids(inputs_tensor, model_kwargs)
        if ids is None:
            return stock._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        call = current(base) or Call()
        sizes = sizes_of(model_kwargs)  # which encoding takes away
        past = cached_length(model_kwargs)
        encodes = self._encode_prompt(ids, model_kwargs, call)
        if past and encodes and pruner.keeps_positions:
            raise ValueError(
                "New images after a cache that is not empty cannot keep their positions. Pass the whole conversation "
                "and all its images without a cache."
            )
        kept = kept_units(model_kwargs.get("mm_encoder_outputs"))
        plain: Any = functools.partial(GenerationMixin._prepare_position_ids_for_generation, self)
        if past:
            before = call_of(cache_of(model_kwargs))
            call.shift = None if before is None or kept else before.shift
            if call.shift is None or not pruner.keeps_positions:
                return stock._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
            positions: Tensor = plain(inputs_tensor, model_kwargs) + call.shift
            return positions[None] if pruner.family.mrope else positions
        if pruner.family.mrope:
            found = mrope_positions(base, ids, {**model_kwargs, **sizes}, kept) if kept else None
            if found is None:
                counted = kept or sizes
                call.shift = None if counted else torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
                return stock._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
            call.shift = found[1]
            text = plain(inputs_tensor, model_kwargs).expand(ids.shape)
            return torch.cat([text[None], found[0]])
        if not kept or not pruner.keeps_positions:
            return stock._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        full = restore(Prompt.of(base, pruner.family, ids, model_kwargs.get("attention_mask")), kept)
        call.shift = full.dropped[:, None]
        known = {k: v for k, v in model_kwargs.items() if k != "input_ids"} | {"attention_mask": full.mask}
        return full.gather(stock._prepare_position_ids_for_generation(full.ids, known))

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        # does nothing after the above; but that is not asked where the caller brings positions
        stock: Any = super()
        ids, call = prompt_ids(inputs_tensor, model_kwargs), current(self.base_model)
        if ids is not None and call is not None:
            self._encode_prompt(ids, model_kwargs, call)
            self._read_prompt(ids, model_kwargs, call)
        return stock._maybe_prepare_encoder_kwargs_for_generation(inputs_tensor, model_kwargs, *args, **kwargs)

    def _read_prompt(self, ids: Tensor, model_kwargs: dict[str, Any], call: Call) -> None:
        """Note the whole prompt, before beams and chunks take it apart."""
        base, past, mask = self.base_model, cached_length(model_kwargs), model_kwargs.get("attention_mask")
        if past and (mask is None or mask.shape[1] == ids.shape[1]):
            ids = ids[:, past:]
        before = call_of(cache_of(model_kwargs))
        if before is not None:
            call.log_mass, call.drops = before.log_mass, before.drops
        self.token_pruner.read(base, call, ids, mask, kept_units(model_kwargs.get("mm_encoder_outputs")), past)
        call.read = True

    @encoding_once()
    def _encode_prompt(self, ids: Tensor, model_kwargs: dict[str, Any], call: Call) -> bool:
        """Encode what pixels there are, in place in `model_kwargs`; whether there were any."""
        base, mask = self.base_model, model_kwargs.get("attention_mask")
        if not images_of(base, model_kwargs):
            return False
        past = cached_length(model_kwargs)
        if past and (mask is None or mask.shape[1] == ids.shape[1]):  # the prompt repeats what is in the cache
            ids, mask = ids[:, past:], None if mask is None else mask[:, past:]
        call.prompt = Prompt.of(base, self.token_pruner.family, ids, mask)
        try:
            self.token_pruner.check(base, call.prompt, model_kwargs)
            with under_way(base, call):
                self._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)  # type: ignore[attr-defined]
        finally:
            call.prompt = None
        return True


def prompt_ids(inputs_tensor: Any, model_kwargs: dict[str, Any]) -> Tensor | None:
    """The prompt's ids from the two places where generate() may have them."""
    ids = model_kwargs.get("input_ids")
    ids = inputs_tensor if ids is None or ids.shape[1] == 0 else ids
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point() else None


class PrunedBase(Attached):
    """A base model that gives K features per unit, and the positions they have."""

    token_pruner: TokenPruner

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> Any:
        stock: Any = super()
        choose = functools.partial(stock.set_attn_implementation, *args, **kwargs)
        return keep_attention(self, self, self.token_pruner.reads_prompts, choose)

    def extra_repr(self) -> str:
        return f"token_pruner={vars(self).get('token_pruner')!r}"

    @classmethod
    def overrides(cls, stock: Any) -> dict[str, Any]:
        """Functions whose stock signature must stay visible, since generate() picks arguments by it."""
        made = {"forward": pruned_forward(stock.forward)}
        for modality in MODALITIES:
            name = f"get_{modality}_features"
            if hasattr(stock, name):
                made[name] = pruned_features(getattr(stock, name), modality)
        return made


def pruned_features(stock: Callable[..., Any], modality: str) -> Callable[..., Any]:
    """`get_image_features` or `get_video_features`, pruned, with the signature generate() looks at."""
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def features(self: Any, *args: Any, **kwargs: Any) -> Any:
        if prunes_nothing(self):
            return stock(self, *args, **kwargs)
        call = signature.bind(self, *args, **kwargs).arguments
        call |= call.pop("kwargs", {})
        call.pop("self")
        as_dict = call.pop("return_dict", None)
        output = self.token_pruner.features(functools.partial(stock, self), VisualInputs(self, modality, call))
        return output.to_tuple() if as_dict is False else output

    return torch.compiler.disable(features)  # type: ignore[no-any-return]


def pruned_forward(stock: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` of a base model: encode, then what follows from what is kept, then the stock forward."""
    names = [name for name in inspect.signature(stock).parameters if name not in ("self", "kwargs")]

    @functools.wraps(stock)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        pruner, call = self.token_pruner, arguments.pop(ARGUMENT, None)
        given, encodes = arguments.get("mm_encoder_outputs") is not None, False
        prompted = arguments.get("input_ids") is not None or arguments.get("inputs_embeds") is not None
        if prompted and not given and any(arguments.get(p) is not None for p in PIXEL):
            call, encodes = encode_call(self, arguments), True
        kept = kept_units(arguments.get("mm_encoder_outputs"))
        numbers = pruner.keeps_positions and (kept or arguments.get("position_ids") is None)
        if numbers or pruner.reads_prompts:
            return known_forward(stock, self, arguments, kept, call)
        output = stock(self, **arguments)
        if encodes:
            tell(pruner, call)
        return output

    return forward


PIXEL = tuple(name for names in PIXELS.values() for name in names)


@torch.compiler.disable
def tell(pruner: TokenPruner, call: Call) -> None:
    """Let a pruner know of a call that has ended well."""
    pruner.latest.tell(call)


@torch.compiler.disable
@encoding_once()
def encode_call(base: Any, arguments: dict[str, Any]) -> Call:
    """Replace the pixels of a forward call by `mm_encoder_outputs`, in place."""
    call = Call()
    pruner: TokenPruner = base.token_pruner
    prompt = Prompt.of(base, pruner.family, visible_ids(base, arguments), arguments.get("attention_mask"))
    pruner.check(base, prompt, arguments)
    call.prompt = prompt if arguments.get("input_ids") is not None else None  # embeddings do not tell the question
    with under_way(base, call):
        outputs = {p.modality: p.function()(**p.arguments, return_dict=True) for p in images_of(base, arguments)}
    call.prompt = None
    for name in PIXEL:
        arguments.pop(name, None)
    arguments["mm_encoder_outputs"] = outputs
    return call


@torch.compiler.disable(recursive=False)
def known_forward(
    stock: Callable[..., Any], base: Any, arguments: dict[str, Any], kept: dict[str, list[KeptUnit]], call: Call | None
) -> Any:
    """The stock forward of a call whose prompt, positions and cache are looked at."""
    call = read_call(base, arguments, kept, call)
    with under_way(base, call):
        output = stock(base, **arguments)
    parts = output if isinstance(output, tuple) else (cache_of(output),)
    for part in (cache_of(arguments), *parts):
        if isinstance(part, Cache):
            keep_on(part, call)
    if not call.read:  # generate() tells at its end
        tell(base.token_pruner, call)
    return output


@torch.compiler.disable
def read_call(base: Any, arguments: dict[str, Any], kept: dict[str, list[KeptUnit]], call: Call | None) -> Call:
    """What is known of a forward call, and its arguments in place: mask, positions, what layers drop."""
    pruner, past = base.token_pruner, cached_length(arguments)
    if pruner.reads_prompts:
        check_attention(base)
    if call is None or not call.read:  # generate() knows the whole prompt, of which this may be a part
        before = call_of(cache_of(arguments)) if past else None
        units = None if call is None else call.units
        call = Call() if before is None else before.going_on()
        call.units = units
        if pruner.reads_prompts and (kept or arguments.get("input_ids") is not None):
            pruner.read(base, call, visible_ids(base, arguments), arguments.get("attention_mask"), kept, past)
    if pruner.proportional_attention:
        arguments["attention_mask"] = size_own_mask(arguments.get("attention_mask"), call.log_mass, base.dtype)
    if pruner.keeps_positions:
        number(base, arguments, kept, past, call)
    if call.drops is not None:
        arguments[DROPS] = call.drops
    return call
