"""What a pair is tried on: dummy pictures of different shapes, one to a prompt, then a ragged batch of them."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_efficient.compat.accelerate import execution_device

from .refusal import Unproven

SHAPES = ((112, 140), (84, 112), (140, 56), (84, 112))  # height and width in pixels
#: pictures of every row: the second for processors of one a prompt, the third for those of one shape a batch
BATCHES = (((0,), (1, 2)), ((0,), (1,), (2,)), ((1,), (3,)))


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Random blobs, so that no patch is like another."""
    noise = np.random.default_rng(seed).integers(0, 255, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def samples(processor: Any, placed: Any) -> list[tuple[list[int], dict[str, Any]]]:
    """Which of the pictures of `SHAPES` are shown, and the processor's arguments for the model; the batch comes last.

    Args:
        processor: without a pruner.
        placed: brings what a processor returns to the model.

    Raises:
        Unproven: the processor takes no form of a batch.
    """
    pictures = [picture(i, *shape) for i, shape in enumerate(SHAPES)]
    shown = [([i], placed(processed(processor, [[one]]))) for i, one in enumerate(pictures)]
    for rows in BATCHES:
        try:
            batch = processed(processor, [[pictures[i] for i in row] for row in rows])
        except Unproven as error:
            refused = error
            continue
        return [*shown, ([i for row in rows for i in row], placed(batch))]
    raise refused


def marks(processor: Any) -> list[str]:
    """What may stand for a picture in a prompt: its token alone, or between those that begin and end a picture."""
    token: str = getattr(processor, "image_placeholder_token", None) or processor.image_token
    ends = [getattr(processor, f"image_{end}_token", None) for end in ("start", "end")]
    return [token, f"{ends[0]}{token}{ends[1]}"] if all(ends) else [token]


def processed(processor: Any, rows: list[list[Image.Image]]) -> dict[str, Any]:
    """What the processor makes of prompts with these pictures, later ones longer; given flat, or else nested.

    The first form that it takes counts, of marks and of pictures.

    Raises:
        Unproven: it takes neither.
    """
    refused: Exception | None = None
    settings = settings_of(processor)
    for mark, images in product(marks(processor), ([one for row in rows for one in row], rows)):
        texts = [mark + "".join(f" a {mark}" for _ in row[1:]) + " b" * (1 + 2 * i) for i, row in enumerate(rows)]
        try:
            return dict(processor(text=texts, images=images, **settings))
        except Exception as error:  # whatever a processor of any make raises on a form it does not take
            refused = refused or error
    assert refused is not None
    raise Unproven("processor", f"it does not take {sum(map(len, rows))} pictures in {len(rows)} prompts: {refused}")


def settings_of(processor: Any) -> dict[str, Any]:
    """How a processor is asked for what its model takes."""
    settings: dict[str, Any] = {"return_tensors": "pt", "padding": True}
    if "mm_token_type_ids" in processor.model_input_names:  # some write them only if asked, and their models want them
        settings["return_mm_token_type_ids"] = True
    return settings


def to_model(model: Any) -> Any:
    """Brings tensors to the device where a model's embeddings run, and pixels to its dtype.

    Raises:
        Unproven: the embeddings are on the meta device, and nobody brings them to another, so nothing can be tried.
    """
    embeddings = model.get_input_embeddings()
    held = execution_device(embeddings)  # of weights that are offloaded
    device = embeddings.weight.device if held is None else torch.device(held)
    if device.type == "meta":
        raise Unproven("runs", "its weights are not there (meta device): attach once they are loaded")

    def placed(inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: _placed(value, device, model.dtype) for name, value in inputs.items() if value is not None}

    return placed


def _placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_placed(one, device, dtype) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)
