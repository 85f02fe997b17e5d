"""From a checked request to the model's inputs: chat template, processor, length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_efficient.reading import shown
from hf_efficient.representation.evaluation.questions import on_device
from hf_efficient.wrapped import pruner_below, unwrapped

from .chat import Chat
from .limits import Refused

DEFAULT_NEW_TOKENS = 1024
SIGNS_PER_TOKEN = 32  # no tokenizer makes fewer tokens of a text that long: it is refused before it is read


@dataclass
class Prompt:
    """What `generate` is given.

    Args:
        inputs: `input_ids` (1, L) and what goes with them, on the model's device.
        settings: of the request, `max_tokens` among them.
        visual: whether there are pictures or videos.
    """

    inputs: dict[str, Any]
    settings: dict[str, Any]
    visual: bool

    @property
    def tokens(self) -> int:
        """L, kept visual tokens among them."""
        return int(self.inputs["input_ids"].shape[-1])


class Prompts:
    """Makes prompts of requests. One thread at a time: tokenizers are not made for more.

    Args:
        model: with a token pruner.
        processor: with the same.

    Raises:
        ValueError: the processor has no chat template.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(
                f"The {type(processor).__name__} of this model has no chat template, which a server of chats needs. "
                "Save one beside the processor as chat_template.jinja."
            )
        self.model, self.processor = model, processor
        self.context: int | None = getattr(unwrapped(model).config.get_text_config(), "max_position_embeddings", None)
        base, family = unwrapped(model).base_model, pruner_below(model).family
        taken = [m for m in family.modalities if hasattr(base, f"get_{m}_features")]
        self.takes_videos = "video" in taken and getattr(processor, "video_processor", None) is not None
        found = [family.placeholder(processor, m) for m in taken if m == "image" or self.takes_videos]
        found += [str(v) for n, v in vars(processor).items() if n.endswith("_token") and isinstance(v, str)]
        self.placeholders = tuple(dict.fromkeys(filter(None, found)))

    def make(self, chat: Chat) -> Prompt:
        """The prompt of a request.

        Raises:
            Refused: the template or the processor cannot make one of it, or it is longer than the model can read.
        """
        texts = sum(len(part.get("text", "")) for message in chat.messages for part in message["content"])
        if self.context is not None and texts > SIGNS_PER_TOKEN * self.context:
            raise Refused(f"The text has {texts} signs; the model reads {self.context} tokens.")
        of_videos: dict[str, Any] = {}
        if chat.clips:
            metadata = [clip.metadata for clip in chat.clips]
            of_videos = {"videos_kwargs": {"do_sample_frames": False, "video_metadata": [metadata]}}
        try:
            inputs = self.processor.apply_chat_template(
                chat.messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=of_videos,
            )
        except MemoryError:
            raise
        except (
            Exception
        ) as error:  # a template's own rules, sizes that a processor does not take: of the request's making
            raise Refused(f"No prompt can be made of the messages: {shown(str(error))}") from error
        inputs = on_device(unwrapped(self.model), dict(inputs))
        visual = any(part["type"] != "text" for message in chat.messages for part in message["content"])
        return Prompt(inputs, self._fitting(chat.settings, int(inputs["input_ids"].shape[-1])), visual)

    def _fitting(self, settings: dict[str, Any], length: int) -> dict[str, Any]:
        """The settings with a `max_tokens` that the model has room for."""
        room = DEFAULT_NEW_TOKENS if self.context is None else self.context - length
        asked = settings.get("max_tokens")
        if room < 1 or (asked is not None and self.context is not None and asked > room):
            more = "" if asked is None else f" and {asked} of an answer are asked for"
            raise Refused(f"The prompt has {length} tokens{more}; the model reads {self.context} in all.")
        return {**settings, "max_tokens": min(DEFAULT_NEW_TOKENS, room) if asked is None else asked}
