"""What clients of `serve_load` ask: good requests, and hostile ones."""

from __future__ import annotations

import base64
import io
import json
import random
from dataclasses import dataclass
from typing import Any

from PIL import Image

from hf_efficient.representation.evaluation.questions import load_evaluation_set

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Ask:
    """A request.

    Args:
        method: of HTTP.
        path: likewise.
        body: likewise.
        name: what it is, if it is hostile.
        large: whether the server may close the connection before it has all.
        leaves: whether the client leaves without an answer.
    """

    method: str
    path: str
    body: bytes | None = None
    name: str = ""
    large: bool = False
    leaves: bool = False


def url(raw: bytes) -> str:
    """Bytes as a data: URL."""
    return "data:image/png;base64," + base64.b64encode(raw).decode()


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def chat(content: Any, **fields: Any) -> bytes:
    """The body of a greedy chat completion."""
    fields.setdefault("messages", [{"role": "user", "content": content}])
    return json.dumps({"model": "tiny", "max_tokens": 8, "temperature": 0, **fields}).encode()


def shown(*urls: str, text: str = "list all .") -> list[dict[str, Any]]:
    """Pictures and a question."""
    return [*({"type": "image_url", "image_url": {"url": one}} for one in urls), {"type": "text", "text": text}]


def good_requests(seed: int, count: int = 24) -> list[Ask]:
    """One picture, several or none; every third is streamed."""
    chance = random.Random(seed)
    scenes = load_evaluation_set(limit=count)
    asks = []
    for number, scene in enumerate(scenes):
        pictures = [url(png(s.image)) for s in chance.sample(scenes, number % 4)]
        text = chance.choice(scene.questions).question
        asks.append(Ask("POST", CHAT, chat(shown(*pictures, text=text), stream=number % 3 == 0)))
    return asks


def hostile_requests() -> list[Ask]:
    """What is to be refused with a sentence, and clients that leave."""
    picture = png(load_evaluation_set(limit=1)[0].image)
    bad_urls = {
        "cut picture": url(picture[: len(picture) // 2]),
        "no picture": url(b"hello"),
        "wrong base64": "data:image/png;base64,%%%",
        "many pixels": url(png(Image.new("1", (12_000, 12_000)))),
        "file": "file:///etc/passwd",
        "remote": "http://127.0.0.1:1/x.png",
    }
    asks = [Ask("POST", CHAT, chat(shown(bad)), name) for name, bad in bad_urls.items()]
    asks += [
        Ask("POST", CHAT, chat(shown(*[url(picture)] * 5)), "too many pictures"),
        Ask("POST", CHAT, chat(shown(url(picture), text="what is <image> ?")), "placeholder"),
        Ask("POST", CHAT, chat("\ud800"), "half a sign"),
        Ask("POST", CHAT, chat("x", messages=[]), "no messages"),
        Ask("POST", CHAT, chat("x", messages=[{"role": "root", "content": "x"}]), "unknown role"),
        Ask("POST", CHAT, chat("x", max_tokens=10**9), "many tokens"),
        Ask("POST", CHAT, chat("x", model="other"), "other model"),
        Ask("POST", CHAT, chat("what " * 2000), "long text"),
        Ask("POST", CHAT, b"{" * 50_000, "no JSON"),
        Ask("POST", CHAT, b"\xff\x00", "no text"),
        Ask("POST", CHAT, b" " * 9_000_000, "large body", large=True),
        Ask("POST", "/reset", b"{}", "unknown path"),
        Ask("GET", CHAT, None, "wrong method"),
        Ask("POST", CHAT, chat(shown(url(picture), url(picture))), "leaves", leaves=True),
        Ask("POST", CHAT, chat(shown(url(picture)), stream=True), "leaves a stream", leaves=True),
    ]
    return asks
