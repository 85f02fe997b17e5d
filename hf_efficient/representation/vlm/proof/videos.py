"""The proof of videos, for a pair whose pictures are proven: the same rules on clips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from hf_efficient.representation.vlm.families.family import encoded, flat
from hf_efficient.representation.vlm.families.generic import Generic, Layout, columns_of
from hf_efficient.representation.vlm.prompt import images_of

from .clips import clip_samples, processed_clips
from .layout import layout_of
from .look import PIXEL, Look, difference, forward
from .prove import undisturbed
from .refusal import Unproven, calling
from .rules import (
    check_batch,
    check_contract,
    check_features,
    first_position,
    holds,
    look_at,
    token_of,
)
from .samples import to_model


def prove_videos(model: Any, processor: Any, family: Generic) -> None:
    """Let a proven family take videos, or note why it does not, and whether it may the next time.

    Args:
        model: stock, with its head.
        processor: its stock processor, with which pictures were proven.
        family: what was proven of pictures.
    """
    try:
        with torch.no_grad(), undisturbed(model):
            _prove(model, processor, family)
    except Unproven as error:  # what is proven of pictures stands
        family.whole, family.final = f"{error}.", family.final and error.final
    except torch.OutOfMemoryError as error:
        family.whole, family.final = f"There was no memory to look at clips: {error}.", False


def _prove(model: Any, processor: Any, family: Generic) -> None:
    check_clips(model.base_model, processor)
    language_model, placed = check_contract(model, processor), to_model(model)
    samples = clip_samples(processor, model.config, placed)
    looks = [look_at(model, language_model, *sample, modality="video") for sample in samples]
    check_features(model, language_model, looks)
    layout = clip_layout(looks)
    check_batch(looks[:-1], looks[-1], layout)
    first = first_position(model, looks)
    if first != (None if family.mrope else family.first_position):
        raise Unproven("positions", f"the first of a clip is {first}, of a picture {family.first_position}")
    apart = ""
    try:
        check_together(model, language_model, placed(processed_clips(processor, model.config, [[0]], pictures=1)))
    except Unproven as error:
        apart, family.final = f"{error}.", family.final and error.final
    family.take_videos(looks[0].token, layout, apart, masks_of(looks))


def check_clips(base: Any, processor: Any) -> None:
    """Raise unless model and processor have the functions for videos."""
    if not hasattr(base, "get_video_features"):
        raise Unproven("features", f"{type(base).__name__} has no get_video_features")
    if getattr(processor, "video_processor", None) is None:
        raise Unproven("processor", f"{type(processor).__name__} has no video processor")
    written = getattr(type(processor), "replace_video_token", ProcessorMixin.replace_video_token)
    if written is ProcessorMixin.replace_video_token or getattr(processor, "video_token", None) is None:
        raise Unproven("placeholders", f"{type(processor).__name__} has no replace_video_token")


def clip_layout(looks: list[Look]) -> Layout:
    """The layout that explains all looks: a run is a piece of the features, or an equal part of one.

    Raises:
        Unproven: none does.
    """
    if all(look.pieces == look.runs for look in looks):
        return Layout(None)
    for name, value in looks[0].images.arguments.items():
        for column in range(len(columns_of(value))):
            if all(_parts(look, name, column) == look.runs for look in looks):
                return Layout(None, frames=(name, column))
    layout = layout_of([(look.pieces, look.runs, len(look.shown)) for look in looks])
    if not layout.one_run:
        runs = ", ".join(str(len(look.runs)) for look in looks)
        raise Unproven("layout", f"no argument of get_video_features tells the numbers of runs of clips, {runs}")
    return layout


def masks_of(looks: list[Look]) -> tuple[str, ...]:
    """Names of the model's arguments that have a truth value for every feature; those of the clips are all true."""
    return tuple(
        name
        for name in looks[0].inputs
        if name not in looks[0].images.arguments
        and all(
            isinstance(mask := look.inputs.get(name), Tensor)
            and mask.dtype == torch.bool
            and mask.shape == (sum(look.pieces),)
            and bool(mask.all())
            for look in looks
        )
    )


def _parts(look: Look, name: str, column: int) -> list[int] | None:
    """The pieces of a look in equal parts, as many as a column of an argument says; None where that does not fit."""
    columns = columns_of(look.images.arguments.get(name))
    counts = columns[column] if column < len(columns) else []
    if len(counts) != len(look.pieces) or any(c < 1 or n % c for n, c in zip(look.pieces, counts, strict=True)):
        return None
    return Layout(None, frames=(name, column)).of_features(look.pieces, look.images.arguments)


def check_together(model: Any, language_model: Any, inputs: dict[str, Any]) -> None:
    """Raise unless a picture and a clip in one prompt each find their features, from pixels or encoded before."""
    calls = images_of(model.base_model, inputs)
    with calling("together", "the model raises"):  # many stock models take one of the two
        outputs = {call.modality: encoded(call) for call in calls}
        given = forward(model, language_model, inputs)
        rest = {name: value for name, value in inputs.items() if name not in PIXEL}
        before = {call.modality: encoded(call) for call in calls}
        again = forward(model, language_model, {**rest, "mm_encoder_outputs": before})
    name = next((name for name in given if difference(given[name], again.get(name))), None)
    if len(outputs) != 2 or name is not None:
        raise Unproven("together", f"encoded before they differ in {name}")
    for modality, output in outputs.items():
        token = token_of(model.config, inputs["input_ids"], modality)
        found: Tensor = given["inputs_embeds"][inputs["input_ids"] == token]
        if not holds(model, token, found, flat(output.pooler_output).to(found)):
            raise Unproven("together", f"the placeholders of the {modality} hold something else")
