"""Why a pair is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: errors of a model or processor that is not made for what it is given; others may be gone the next time (no memory)
OF_THE_PAIR = (TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError)


class Unproven(ValueError):
    """A rule that a pair of model and processor was not found to keep.

    Attributes:
        rule: the name of the rule, a key of `RULES`.
        found: what was found in its place.
    """

    def __init__(self, rule: str, found: str, pair: str = "", more: str = "") -> None:
        """`pair`: what comes before the rule in the message; `more`: what comes after it."""
        super().__init__(f"{pair}{RULES[rule]}; but {found}{more}")
        self.rule, self.found, self.pair, self.more = rule, found, pair, more

    @property
    def final(self) -> bool:
        """Whether it will be found again. An error that tells nothing of the pair (no memory) may be gone next time."""
        return self.__cause__ is None or isinstance(self.__cause__, OF_THE_PAIR)

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        return type(self), (self.rule, self.found, self.pair, self.more)


@contextmanager
def calling(rule: str, found: str = "it raises") -> Iterator[None]:
    """Around calls of a stock model or processor: whatever they raise is a refusal by this rule."""
    try:
        yield
    except Exception as error:  # of a model or processor of any make, on what is not meant for it
        raise Unproven(rule, f"{found} {type(error).__name__}: {error}") from error


#: What a pair must keep, in the order in which it is looked at.
RULES = {
    "base": "the model has a base model under its head, and that a language model",
    "features": "the base model has a function for the features, get_image_features or get_video_features",
    "pre-encoded": "the base model's forward takes mm_encoder_outputs",
    "token": "the config has an image_token_id, which the processor writes",
    "placeholders": "the processor writes placeholders by replace_image_token or replace_video_token",
    "processor": "the processor takes pictures or clips of different shapes, alone and in a batch",
    "runs": "the model runs on what the processor makes",
    "pixels": "the pixels that the processor makes are those that the function for features takes",
    "pooler_output": "the function for the features puts them into pooler_output",
    "counts": "there are as many placeholders as features",
    "layout": "runs of placeholders and pieces of pooler_output tell each other's sizes",
    "same bits": "pixels and features encoded before give the language model the same",
    "order": "placeholders hold the features as they are, in their order",
    "one way": "no feature reaches the language model but by pooler_output (and deepstack_features)",
    "positions": "positions can be counted without the model's forward",
    "batch": "pictures or clips in a batch give the features, in the order, that they give alone",
    "together": "a picture and a clip in one prompt are what they are alone",
}
