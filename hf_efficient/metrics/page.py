"""The page of a metric's Space: values as JSON, and what the metric says of them."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from hf_efficient.extras import extra
from hf_efficient.reading import is_number, shown
from hf_efficient.space import Deadline, guarded, in_one_thread, launch_options, refusal

from . import functions
from .face import FRAME, TYPES

with extra("spaces"):
    import gradio as gr

LONGEST = 200_000  # characters of a field
MOST_SECONDS = 30
LAUNCH_OPTIONS = launch_options(__file__, "sky", largest_upload=0)
_FRAMES = [[[[20 * row, 20 * column, 100] for column in range(11)] for row in range(11)]]
#: Metric -> what its fields hold at the start.
EXAMPLES: dict[str, dict[str, Any]] = {
    "token_retention": {"predictions": ["bag", "boot"], "references": ["bag", "shoe"], "stock": ["bag", "shoe"]},
    "exact_match_by_family": {
        "predictions": ["bag", "yes", "no"], "references": ["bag", "yes", "yes"], "families": ["what", "is", "is"],
    },
    "sparsity": {"predictions": [10, 20], "references": [100, 200], "dense": 100},
    "video_quality": {"predictions": _FRAMES, "references": (np.array(_FRAMES) + 5).tolist()},
    "forgetting": {"predictions": [0.5, 0.7], "references": [0.9, 0.6]},
    "loss_rise": {"predictions": [1.5, 1.2], "references": [1.0, 1.1]},
}  # fmt: skip


def page(name: str) -> gr.Blocks:
    """The page of a metric, ready to be launched.

    Args:
        name: of `hf_efficient.metrics.NAMES`.
    """
    function: Callable[..., dict[str, float]] = getattr(functions, name)
    with gr.Blocks(title=name) as demo:
        gr.Markdown(f"# {name.replace('_', ' ').capitalize()}\n\n```\n{inspect.cleandoc(function.__doc__ or '')}\n```")
        fields = [
            gr.Textbox(json.dumps(value), label=f"{field}, as JSON", lines=2, max_lines=8, elem_id=field)
            for field, value in EXAMPLES[name].items()
        ]
        button = gr.Button("Compute", variant="primary", elem_id="compute")
        result = gr.JSON(label="What the metric says", elem_id="result")
        button.click(
            partial(in_one_thread, partial(computed, name)), fields, result, api_name="compute", concurrency_limit=1
        )
    return guarded(demo, *fields)


def computed(name: str, *texts: object) -> dict[str, float | str]:
    """A metric of fields as they were sent.

    Args:
        name: of the metric.
        texts: JSON of its arguments, in their order.

    Raises:
        gradio.Error: they cannot be read, or not be compared.
    """
    deadline = Deadline(MOST_SECONDS, "Send less.")
    values = {}
    for field, text in zip(EXAMPLES[name], texts, strict=True):
        values[field] = read(field, text, TYPES[name] if field in ("predictions", "references") else None)
        deadline()
    try:
        found = getattr(functions, name)(**values)
    except ValueError as error:
        raise refusal(str(error)) from None
    return {key: value if math.isfinite(value) else str(value) for key, value in found.items()}


def read(field: str, text: object, kind: str | None) -> Any:
    """What a field holds.

    Args:
        field: its name.
        text: what was sent.
        kind: of the values of a list, as in `face.TYPES`; None: a whole number for `dense`, else a list of texts.

    Raises:
        gradio.Error: it is no JSON, or something else.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        raise refusal(f"{field}: expected JSON of at most {LONGEST:,} characters.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise refusal(f"{field}: {shown(text)} is no JSON.") from None
    if field == "dense":
        if not is_number(value) or value != int(value) or value < 0:
            raise refusal(f"dense: {shown(value)} is not a whole number >= 0.")
        return int(value)
    if not isinstance(value, list):
        raise refusal(f"{field}: {shown(value)} is not a list.")
    if kind == FRAME:
        return [frame(field, one) for one in value]
    fits: Callable[[Any], bool] = is_number if kind in ("int64", "float64") else lambda one: isinstance(one, str)
    if odd := [one for one in value if not fits(one) or (kind == "int64" and one != int(one))]:
        wanted = {"int64": "whole numbers", "float64": "numbers"}.get(kind or "", "texts")
        raise refusal(f"{field}: {shown(odd[0])}; expected {wanted}.")
    return value


def frame(field: str, value: object) -> np.ndarray[Any, Any]:
    """(H, W, 3) of 0 to 255."""
    try:
        made = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        made = np.zeros(0)
    if made.ndim != 3 or made.shape[2] != 3 or not ((made >= 0) & (made <= 255)).all():
        raise refusal(f"{field}: expected frames as lists of rows of pixels of three numbers from 0 to 255.")
    return made
