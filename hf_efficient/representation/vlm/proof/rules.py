"""The rules that a pair must keep, each looked at on a few dummy pictures."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from hf_efficient.representation.vlm.decoder.rope import rope_index
from hf_efficient.representation.vlm.families.family import encoded, flat
from hf_efficient.representation.vlm.families.generic import Layout, pieces_of
from hf_efficient.representation.vlm.prompt import images_of

from .look import PIXEL, Look, difference, forward, runs_of
from .refusal import Unproven, calling

#: fields of a feature function's output that are pruned
REDUCED = ("pooler_output", "deepstack_features")
NOUN = {"image": "picture", "video": "clip"}


def check_contract(model: Any, processor: Any) -> Any:
    """Raise unless model and processor have the functions that the rest works with.

    Returns:
        The language model.
    """
    base = model.base_model
    language_model = getattr(base, "language_model", None) or getattr(base, "text_model", None)
    if base is model:
        raise Unproven("base", f"{type(base).__name__} is both in one")
    if language_model is None:
        raise Unproven("base", f"{type(base).__name__} has no language_model beside its encoder")
    if not hasattr(base, "get_image_features"):
        raise Unproven("features", f"{type(base).__name__} has none")
    if "mm_encoder_outputs" not in inspect.signature(base.forward).parameters:
        raise Unproven("pre-encoded", f"that of {type(base).__name__} does not")
    if getattr(model.config, "image_token_id", None) is None:
        raise Unproven("token", "it has none")
    written = getattr(type(processor), "replace_image_token", ProcessorMixin.replace_image_token)
    if written is ProcessorMixin.replace_image_token or getattr(processor, "image_token", None) is None:
        raise Unproven("placeholders", f"{type(processor).__name__} does not")
    return language_model


def look_at(model: Any, language_model: Any, shown: list[int], inputs: dict[str, Any], modality: str = "image") -> Look:
    """See one sample through a model.

    Raises:
        Unproven: the model does not run on it, or its features cannot be told apart.
    """
    base, ids = model.base_model, inputs["input_ids"]
    calls = images_of(base, inputs)
    if [call.modality for call in calls] != [modality]:
        raise Unproven("pixels", f"of {', '.join(inputs)} it takes {[call.modality for call in calls]}")
    with calling("runs"):
        output = encoded(calls[0])
        given = forward(model, language_model, inputs)
    if getattr(output, "pooler_output", None) is None:
        raise Unproven("pooler_output", "that is empty")
    token = token_of(model.config, ids, modality)
    try:
        pieces, runs = pieces_of(output.pooler_output), runs_of(ids, token)
    except ValueError as error:
        raise Unproven("pooler_output", str(error).rstrip(".")) from None
    if sum(pieces) != sum(runs):
        found = f"of {len(shown)} {NOUN[modality]}(s) there are {sum(pieces)} features, {sum(runs)} placeholders"
        raise Unproven("counts", found)
    return Look(shown, inputs, calls[0], output, pieces, token, runs, given)


def token_of(config: Any, ids: Tensor, modality: str) -> int:
    """The id of placeholders in a prompt; frames of a video may be shown as images are (GLM-4V)."""
    own = getattr(config, f"{modality}_token_id", None)
    token: int = config.image_token_id if own is None or not bool((ids == own).any()) else own
    return token


def check_features(model: Any, language_model: Any, looks: list[Look]) -> None:
    """Raise unless the features of every look are all that the language model gets of it, as they are."""
    for look, other in zip(looks, [*looks[1:], looks[0]], strict=True):
        check_order(model, look)
        check_one_way(model, language_model, look, other)
        check_levels(look)


def check_order(model: Any, look: Look) -> None:
    """Raise unless the features stand in the placeholders bit for bit, in their order.

    They may be added to the embedding of the placeholder: that is the same for all, and goes where its token goes.
    """
    embeddings, ids = look.given["inputs_embeds"], look.inputs["input_ids"]
    if embeddings.shape != (*ids.shape, look.flat.shape[-1]):
        raise Unproven(
            "order",
            f"the language model is given {tuple(embeddings.shape)} for {tuple(ids.shape)} tokens and features of "
            f"{look.flat.shape[-1]} numbers",
        )
    found = embeddings[ids == look.token]
    expected = look.flat.to(found)
    if holds(model, look.token, found, expected):
        return
    ratio = (found.float() * expected.float()).sum() / expected.float().square().sum()
    if torch.allclose(found.float(), ratio * expected.float(), rtol=1e-2, atol=1e-4):
        raise Unproven("order", f"they are {float(ratio):.4g} times as large in the language model")
    moved = sum(not torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    raise Unproven("order", f"{moved} of {len(found)} placeholders hold something else")


def holds(model: Any, token: int, found: Tensor, expected: Tensor) -> bool:
    """Whether placeholders of an id hold the features that are expected, or these and their own embedding."""
    own = model.get_input_embeddings()(torch.tensor(token, device=found.device)).to(found)
    return torch.equal(found, expected) or torch.equal(found, expected + own)


def check_one_way(model: Any, language_model: Any, look: Look, other: Look) -> None:
    """Raise unless features encoded before serve as pixels do, and their other fields serve for nothing.

    Fields that are those of the `other` look, at another picture or clip, tell nothing of what is shown.
    """
    rest = {name: value for name, value in look.inputs.items() if name not in PIXEL}
    modality = look.images.modality

    def differs(output: Any) -> str | None:
        with calling("same bits", "of features encoded before it raises"):
            given = forward(model, language_model, {**rest, "mm_encoder_outputs": {modality: output}})
        return next((name for name in look.given if difference(look.given[name], given.get(name))), None)

    def once_more() -> Any:
        with calling("runs", "another time it raises"):
            return encoded(look.images)

    if (name := differs(once_more())) is not None:
        raise Unproven("same bits", f"they differ in {name}")
    telling = [name for name in look.output if difference(look.output[name], other.output.get(name))]
    others = [name for name in telling if name not in REDUCED]
    spoiled = once_more()
    for field in others:
        spoiled[field] = spoil(spoiled[field])
    if differs(spoiled) is not None:
        for field in others:
            only = once_more()
            only[field] = spoil(only[field])
            if (name := differs(only)) is not None:
                raise Unproven("one way", f"{field} is read as well, and changes {name}")


def spoil(value: Any) -> Any:
    """NaN in place of all numbers with a point."""
    if isinstance(value, Tensor):
        return torch.full_like(value, float("nan")) if value.is_floating_point() else value
    return type(value)(map(spoil, value)) if isinstance(value, (list, tuple)) else value


def check_levels(look: Look) -> None:
    """Raise unless levels of deepstack have a row a feature, and are given to the language model as they are."""
    levels = getattr(look.output, "deepstack_features", None)
    if levels is None:
        return
    tensors = [x for value in look.given.values() if isinstance(value, (list, tuple)) for x in value]
    for level in levels:
        rows = flat(level)
        if len(rows) != len(look.flat) or all(difference(rows, x) for x in tensors):
            raise Unproven("one way", "deepstack_features are not given to the language model row by row")


def check_batch(alone: list[Look], batch: Look, layout: Layout) -> None:
    """Raise unless all that a batch shows has the features and units that it has alone, in the order of the prompt.

    Args:
        alone: looks at single pictures or clips, by their number.
        batch: the look at several.
        layout: tells their units.
    """
    expected, noun = [alone[i].flat for i in batch.shown], NOUN[batch.images.modality]
    sizes = [n for i in batch.shown for n in units_of(alone[i], layout)]
    together = units_of(batch, layout)
    if together != sizes:
        raise Unproven("batch", f"together they have units of {together} tokens, alone of {sizes}")
    for i, part in enumerate(batch.flat.split([len(one) for one in expected])):
        fits = {j: float((part - one).float().norm()) for j, one in enumerate(expected) if len(one) == len(part)}
        nearest = min(fits, key=lambda j: fits[j])
        if nearest != i:
            raise Unproven("batch", f"{noun} {i + 1} has there the features of {noun} {nearest + 1}")
        if fits[i] > 0.05 * float(expected[i].float().norm()):
            raise Unproven("batch", f"the features of {noun} {i + 1} are others there")


def units_of(look: Look, layout: Layout) -> list[int]:
    """Sizes of the units that a layout sees in a look."""
    return layout.of_features(look.pieces, look.images.arguments)


def first_position(model: Any, looks: list[Look]) -> int | None:
    """Position of the first token where the stock forward counts along one axis; None where positions have axes.

    Raises:
        Unproven: it counts otherwise than by place in the prompt, or otherwise than `get_rope_index`.
    """
    base, starts = model.base_model, set()
    for look in looks:
        ids, found = look.inputs["input_ids"], look.given.get("position_ids")
        if hasattr(base, "get_rope_index"):
            with calling("positions", "get_rope_index raises"):
                counted = rope_index(base, ids, look.inputs)
            if counted is not None and len(counted[0]) != 3:
                raise Unproven("positions", f"they have {len(counted[0])} axes, not those of time, height and width")
            if counted is None or found is None or difference(counted[0], found[-3:].expand(3, *ids.shape)):
                raise Unproven("positions", "get_rope_index gives others than the forward")
            continue
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        start = 0 if found is None else int(found.min())
        if found is not None and (found.dim() > 2 or difference(places + start, found.expand(ids.shape))):
            raise Unproven("positions", "they are not those of the places in the prompt")
        starts.add(start)
    if len(starts) > 1:
        raise Unproven("positions", f"prompts begin at {sorted(starts)}")
    return starts.pop() if starts else None
