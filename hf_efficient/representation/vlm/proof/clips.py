"""What videos are tried on: dummy clips of different lengths and shapes, alone, in a batch, and beside a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers.video_utils import VideoMetadata

from .refusal import Unproven
from .samples import SHAPES, marks, picture, settings_of

CLIPS = ((4, 84, 112), (6, 112, 56), (4, 56, 84))  # frames, and height and width in pixels
BATCHES = (((0,), (1, 2)), ((0,), (1,), (2,)), ((0,), (2,)))  # the last for those that take clips of one length only
#: all frames are shown; some processors write time stamps, and ask for what tells them
SETTINGS: tuple[dict[str, Any], ...] = (
    {"do_sample_frames": False},
    {"do_sample_frames": False, "return_metadata": True},
)
RATE = 2.0  # frames a second


def clip(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """(frames, height, width, 3) uint8: random blobs, others in each frame."""
    return np.stack([np.asarray(picture(100 * (seed + 1) + i, height, width)) for i in range(frames)])


def clip_samples(processor: Any, config: Any, placed: Any) -> list[tuple[list[int], dict[str, Any]]]:
    """Which of the clips of `CLIPS` are shown, and the processor's arguments for the model; the batch comes last.

    Args:
        processor: without a pruner.
        config: of the model.
        placed: brings what a processor returns to the model.

    Raises:
        Unproven: the processor takes no form of a batch.
    """
    shown = [([i], placed(processed_clips(processor, config, [[i]]))) for i in range(len(CLIPS))]
    for rows in BATCHES:
        try:
            batch = processed_clips(processor, config, [list(row) for row in rows])
        except Unproven as error:
            refused = error
            continue
        return [*shown, ([i for row in rows for i in row], placed(batch))]
    raise refused


def processed_clips(processor: Any, config: Any, rows: list[list[int]], pictures: int = 0) -> dict[str, Any]:
    """What the processor makes of prompts with these clips, later ones longer, behind `pictures` in each.

    Raises:
        Unproven: it takes them with none of `SETTINGS`.
    """
    mark, image = clip_mark(processor, config), marks(processor)[0]
    texts = [
        f"{image} a " * pictures + mark + "".join(f" a {mark}" for _ in row[1:]) + " b" * (1 + 2 * i)
        for i, row in enumerate(rows)
    ]
    shapes = [(i, CLIPS[i]) for row in rows for i in row]
    given: dict[str, Any] = {"text": texts, "videos": [clip(i, *shape) for i, shape in shapes]}
    if pictures:
        given["images"] = [picture(i, *SHAPES[i]) for _ in rows for i in range(pictures)]
    for settings in SETTINGS:
        about = {"video_metadata": [metadata(*shape) for _, shape in shapes], **settings}
        try:
            return dict(processor(**given, videos_kwargs=about, **settings_of(processor)))
        except Exception as error:  # whatever a processor of any make raises on what it does not take
            refused = error
    raise Unproven("processor", f"it does not take {len(shapes)} clips in {len(rows)} prompts: {refused}") from refused


def clip_mark(processor: Any, config: Any) -> str:
    """What stands for a clip in a text: its token, between those that the config names for its ends."""
    mark = getattr(processor, "video_placeholder_token", None) or processor.video_token
    ends = [getattr(config, f"video_{end}_token_id", None) for end in ("start", "end")]
    if None in ends:
        return str(mark)
    start, end = processor.tokenizer.convert_ids_to_tokens(ends)
    return f"{start}{mark}{end}"


def metadata(frames: int, height: int, width: int) -> VideoMetadata:
    """What is known of a clip."""
    return VideoMetadata(
        total_num_frames=frames,
        fps=RATE,
        width=width,
        height=height,
        duration=frames / RATE,
        frames_indices=list(range(frames)),
    )
