"""Rows of data as inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_efficient.reading import shown
from hf_efficient.representation.evaluation.questions import encode_prompts

CALIBRATED_ON, CALIBRATION_BATCH = 64, 8  # rows that pruning of weights looks at, in all and at a time


def inputs_of_rows(processor: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The inputs of a batch.

    Args:
        processor: a processor or tokenizer; not read for rows of tensors.
        rows: with "image" and "question"; or with "text"; or of tensors and numbers of equal shapes, as a model takes
            them.

    Raises:
        ValueError: there are no rows, or they have none of these, or tensors of unequal shapes.
    """
    first = rows[0] if len(rows) else {}
    if not isinstance(first, Mapping):
        raise ValueError(f"data has rows of type {type(first).__name__}; expected dicts, or pass inputs=, a function "
                         "of processor and rows that makes inputs of the model.")  # fmt: skip
    if "image" in first and "question" in first:
        return encode_prompts(processor, [row["image"] for row in rows], [str(row["question"]) for row in rows])
    if "text" in first and processor is not None:
        return dict(processor([str(row["text"]) for row in rows], padding=True, return_tensors="pt"))
    if first and all(isinstance(value, (Tensor, np.ndarray, int, float, list)) for value in first.values()):
        made = {name: [torch.as_tensor(row[name]) for row in rows] for name in first}
        for name, tensors in made.items():
            if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
                raise ValueError(f"data has {name!r} of shapes {sorted(shapes)}; expected one shape, or pass inputs=, "
                                 "a function of processor and rows that pads them.")  # fmt: skip
        return {name: torch.stack(tensors) for name, tensors in made.items()}
    raise ValueError(
        f"data has rows of {shown(sorted(first))}, of which no inputs are known to be made; expected 'image' and "
        "'question', or 'text', or tensors. Or pass inputs=, a function of processor and rows that makes them."
    )


def calibration_batches(rows: Sequence[Any], inputs: Callable[[Sequence[Any]], Any]) -> list[Any]:
    """Inputs of the first rows, in batches: what pruning of weights looks at.

    Args:
        rows: of data.
        inputs: makes inputs of the model from some of them.
    """
    first = [rows[i] for i in range(min(CALIBRATED_ON, len(rows)))]
    return [inputs(first[i : i + CALIBRATION_BATCH]) for i in range(0, len(first), CALIBRATION_BATCH)]
