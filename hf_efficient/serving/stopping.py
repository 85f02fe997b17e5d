"""Ending an answer at a text. transformers' own `stop_strings` fail with some tokenizers (of whole words, for one)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class StopAt(StoppingCriteria):
    """Ends generation when the answer holds one of some texts.

    Args:
        tokenizer: that decodes the answer.
        stops: the texts.
        prompt_tokens: of the prompt, which is not looked at.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt_tokens: int) -> None:
        self.tokenizer, self.stops, self.prompt_tokens = tokenizer, tuple(stops), prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B,) bool: which rows have ended, of ids (B, L)."""
        answers = self.tokenizer.batch_decode(input_ids[:, self.prompt_tokens :], skip_special_tokens=True)
        ended = [any(stop in answer for stop in self.stops) for answer in answers]
        return torch.tensor(ended, device=input_ids.device)


def cut(answer: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The answer up to the first of the texts, and whether there was one."""
    found = [answer.index(stop) for stop in stops if stop in answer]
    return (answer[: min(found)], True) if found else (answer, False)
