"""A server in this process on loopback, and a client that says what it got."""

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from PIL import Image

from hf_efficient.serving.app import Service
from hf_efficient.serving.serve import bound


class Client:
    """Asks a server."""

    def __init__(self, base: str, model: str = "tiny") -> None:
        self.base, self.model = base, model

    def send(self, path: str, raw: bytes | None = None, timeout: float = 120, **headers: str) -> tuple[int, str]:
        """Status and text of a response, whatever it is."""
        request = urllib.request.Request(self.base + path, raw, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(self, content: Any, **fields: Any) -> tuple[int, Any]:
        """Status and JSON of a chat completion with one message of the user."""
        fields.setdefault("messages", [{"role": "user", "content": content}])
        body = {"model": self.model, "max_tokens": 8, "temperature": 0, **fields}
        status, text = self.send("/v1/chat/completions", json.dumps(body).encode())
        return status, json.loads(text)

    def stream(self, content: Any, **fields: Any) -> list[dict[str, Any]]:
        """The events of a stream but for its end, which is checked."""
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, "stream": True}
        status, text = self.send("/v1/chat/completions", json.dumps(body | fields).encode())
        assert status == 200
        *events, end = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert end == "[DONE]"
        return [json.loads(event) for event in events]

    def metric(self, name: str) -> float:
        """A counter's value, over all labels."""
        text = self.send("/metrics")[1]
        lines = [line for line in text.splitlines() if line.startswith(f"hf_efficient_{name}")]
        return sum(float(line.split()[-1]) for line in lines)


@contextmanager
def running(service: Service, model: str = "tiny") -> Iterator[Client]:
    """A client of a service that runs in a thread."""
    with bound("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(service.app(), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Client(f"http://127.0.0.1:{listening.getsockname()[1]}", model)
        finally:
            server.should_exit = True
            thread.join()


def data_url(raw: bytes, kind: str = "image/png") -> str:
    """Bytes as a data: URL."""
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def picture(image: Image.Image) -> dict[str, Any]:
    """The part of a message that shows an image."""
    return {"type": "image_url", "image_url": {"url": data_url(png(image))}}


def words(text: str) -> dict[str, Any]:
    """The part of a message that says a text."""
    return {"type": "text", "text": text}


def answer(reply: tuple[int, Any]) -> str:
    """The text of a completion."""
    status, body = reply
    assert status == 200, body
    return str(body["choices"][0]["message"]["content"])
