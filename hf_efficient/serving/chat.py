"""The body of a chat completion, checked field by field: whatever is wrong with it is a sentence for the client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_efficient.reading import is_number, is_whole, shown

from .limits import Limits, Refused
from .media import picture_of

if TYPE_CHECKING:
    from .clips import Clip

ROLES = ("system", "user", "assistant")
READ = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream")
UNREAD = ("user", "metadata", "store", "service_tier", "stream_options", "safety_identifier", "prompt_cache_key")
#: What clients send without meaning it: field -> the values that change nothing; others are refused.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
MOST_MESSAGES, MOST_PARTS, MOST_STOPS, MOST_TOKENS = 1000, 1000, 4, 1 << 20


@dataclass
class Chat:
    """A checked request.

    Args:
        model: that it asks for; None: whichever is served.
        messages: as a processor's chat template takes them, pictures and frames decoded.
        settings: `max_tokens`, `temperature`, `top_p` and `stop`, those that are given.
        stream: whether the answer is sent as it is made.
        seed: of what is drawn.
        clips: the videos, in order.
    """

    model: str | None
    messages: list[dict[str, Any]]
    settings: dict[str, Any]
    stream: bool = False
    seed: int | None = None
    clips: list[Clip] = field(default_factory=list)


def parse_chat(raw: bytes, limits: Limits, placeholders: Sequence[str], takes_videos: bool) -> Chat:
    """Read the body of a request.

    Args:
        raw: JSON.
        limits: of the server.
        placeholders: texts that stand for pictures in a prompt, which no message may hold.
        takes_videos: whether the model does.

    Raises:
        Refused: the first thing that is wrong.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(f"The body is not JSON: {shown(str(error))}.") from error
    if not isinstance(body, dict):
        raise Refused(f"The body is {shown(body)}; expected a JSON object.")
    _check_fields(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MOST_MESSAGES:
        raise Refused(f"messages={shown(messages)}; expected a list of 1 to {MOST_MESSAGES} messages.")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise Refused(f"model={shown(model)}; expected the name of the model, of GET /v1/models.")
    chat = Chat(model, [], _settings(body), _flag(body, "stream"), _seed(body.get("seed")))
    parts = [_parts(message, number) for number, message in enumerate(messages)]
    _check_counts([part for of_message in parts for part in of_message], limits, takes_videos)
    for message, of_message in zip(messages, parts, strict=True):
        content = [_part(part, limits, placeholders, chat) for part in of_message]
        chat.messages.append({"role": message["role"], "content": content})
    return chat


def _check_fields(body: dict[str, Any]) -> None:
    for name, value in body.items():
        if name in NEUTRAL:
            if value is not None and value not in NEUTRAL[name]:
                raise Refused(f"{shown(name)}: {shown(value)} is not supported; leave it out.")
        elif name not in READ and name not in UNREAD:
            raise Refused(f"The field {shown(name)} is not known; expected {', '.join(READ)}.")


def _settings(body: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if not is_whole(value) or not 1 <= value <= MOST_TOKENS:
            raise Refused(f"{name}={shown(value)}; expected a whole number from 1 to {MOST_TOKENS}.")
        settings.setdefault("max_tokens", value)
    for name, least, most, expected in (
        ("temperature", 0.0, 2.0, "a number from 0 to 2"),
        ("top_p", 1e-6, 1.0, "a number above 0, at most 1"),
    ):
        value = body.get(name)
        if value is None:
            continue
        if not is_number(value) or not least <= value <= most:
            raise Refused(f"{name}={shown(value)}; expected {expected}.")
        settings[name] = float(value)
    stop = body.get("stop")
    if stop is not None:
        words = [stop] if isinstance(stop, str) else stop
        if not isinstance(words, list) or len(words) > MOST_STOPS or not all(map(_is_stop, words)):
            raise Refused(
                f"stop={shown(stop)}; expected a text or a list of at most {MOST_STOPS}, 1 to 100 signs each."
            )
        if words:
            settings["stop"] = words
    return settings


def _is_stop(word: object) -> bool:
    return isinstance(word, str) and 1 <= len(word) <= 100 and _encodable(word)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"{name}={shown(value)}; expected true or false.")
    return bool(value)


def _seed(value: object) -> int | None:
    if value is not None and (not is_whole(value) or not 0 <= value < 2**63):  # type: ignore[operator]
        raise Refused(f"seed={shown(value)}; expected a whole number from 0 to 2**63 - 1.")
    return value  # type: ignore[return-value]


def _parts(message: object, number: int) -> list[dict[str, Any]]:
    """The parts of a message's content; a text is one part."""
    where = f"Message {number}"
    if not isinstance(message, dict):
        raise Refused(f"{where} is {shown(message)}; expected an object with role and content.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise Refused(f"{where} has the role {shown(role)}; expected one of {', '.join(ROLES)}.")
    if unknown := [name for name, value in message.items() if name not in ("role", "content", "name") and value]:
        raise Refused(f"{where} has the field {shown(unknown[0])}, which is not supported.")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not 1 <= len(parts) <= MOST_PARTS:
        raise Refused(
            f"{where} has the content {shown(content)}; expected a text, or a list of 1 to {MOST_PARTS} parts."
        )
    for part in parts:
        if not isinstance(part, dict) or part.get("type") not in ("text", "image_url", "video_url"):
            kind = part.get("type") if isinstance(part, dict) else part
            raise Refused(f"{where} has a part of type {shown(kind)}; expected text, image_url or video_url.")
    return parts


def _check_counts(parts: list[dict[str, Any]], limits: Limits, takes_videos: bool) -> None:
    """Before the first of them is decoded."""
    pictures = sum(part["type"] == "image_url" for part in parts)
    videos = sum(part["type"] == "video_url" for part in parts)
    if pictures > limits.max_pictures:
        raise Refused(f"The request has {pictures} pictures; this server takes {limits.max_pictures}.")
    if videos and not takes_videos:
        raise Refused("The model takes no videos, only pictures (image_url).")
    if videos > limits.max_videos:
        raise Refused(f"The request has {videos} videos; this server takes {limits.max_videos}.")


def _part(part: dict[str, Any], limits: Limits, placeholders: Sequence[str], chat: Chat) -> dict[str, Any]:
    """A part as processors take it; a video is kept in `chat.clips` too."""
    kind = part["type"]
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str) or not _encodable(text):
            raise Refused(f"A text is {shown(text)}; expected a string of Unicode signs.")
        if found := [token for token in placeholders if token in text]:
            raise Refused(f"A text holds {shown(found[0])}, which stands for a picture in prompts; leave it out.")
        return {"type": "text", "text": text}
    named = part.get(kind)
    url = named.get("url") if isinstance(named, dict) else named
    if kind == "image_url":
        return {"type": "image", "image": picture_of(url, limits)}
    from .clips import clip_of

    chat.clips.append(clip_of(url, limits))
    return {"type": "video", "video": chat.clips[-1].frames}


def _encodable(text: str) -> bool:
    """Whether it is text: JSON can name halves of signs, which tokenizers cannot take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
