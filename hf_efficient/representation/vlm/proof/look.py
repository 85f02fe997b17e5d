"""One call of a model, seen from inside: its features, and what the language model is given in place of text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.vlm.families.family import PIXELS, VisualInputs, flat

PIXEL = {name for names in PIXELS.values() for name in names}


@dataclass
class Look:
    """What was seen of one sample.

    Args:
        shown: which of the dummy pictures, or clips, it shows.
        inputs: arguments of the model, pixels included.
        images: the call of the feature function.
        output: what it returned.
        pieces: number of tokens of every piece of `pooler_output`.
        token: id of the placeholders.
        runs: lengths of the unbroken runs of placeholders, row by row.
        given: what the language model was given, by the names of its arguments; "result" is the model's output.
    """

    shown: list[int]
    inputs: dict[str, Any]
    images: VisualInputs
    output: Any
    pieces: list[int]
    token: int
    runs: list[int]
    given: dict[str, Any]

    @property
    def flat(self) -> Tensor:
        """(N, D): all features, in their order."""
        return flat(self.output.pooler_output)


def runs_of(ids: Tensor, token: int) -> list[int]:
    """Lengths of the unbroken runs of `token` in ids (B, L), row by row."""
    found = torch.nn.functional.pad(ids == token, (1, 1))
    edges = found.int().diff(dim=1)
    starts, ends = ((edges == sign).nonzero() for sign in (1, -1))
    lengths: list[int] = (ends[:, 1] - starts[:, 1]).tolist()
    return lengths


class States(dict[str, Any]):
    """In place of a language model's output: its states, and None for all else it may be asked for."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, name: Any) -> Any:
        return self["last_hidden_state"] if name == 0 else super().get(name)


def forward(model: Any, language_model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What a language model is given in a call of its whole model; it is not run, but hands its embeddings on.

    So the answer of the whole model, "result" in the dict, shows what reaches it around the language model.
    """
    with standing_in(language_model) as given:
        result = model(**inputs, use_cache=False)
    given["result"] = getattr(result, "logits", result)
    return given


@contextmanager
def standing_in(language_model: Any) -> Iterator[dict[str, Any]]:
    """Take the place of a module's forward: note what it is given, hand its embeddings on."""
    given: dict[str, Any] = {}

    def stand_in(*args: Any, **kwargs: Any) -> States:
        given.update({str(i): value for i, value in enumerate(args)}, **kwargs)
        return States(last_hidden_state=kwargs["inputs_embeds"])

    held = vars(language_model).get("forward")  # where accelerate has put one
    language_model.forward = stand_in
    try:
        yield given
    finally:
        del language_model.forward
        if held is not None:
            language_model.forward = held


def difference(one: Any, other: Any) -> bool:
    """Whether two values of what a language model is given differ in a bit."""
    if isinstance(one, Tensor):
        return not (isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(difference(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) != len(other) or any(map(difference, one, other))
    return False
