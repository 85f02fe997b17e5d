"""Whatever is wrong with a request is told in a sentence, and the next request is answered."""

import io
import json
import socket
import time
from typing import Any

import pytest
from PIL import Image

from hf_efficient import TokenPrunerConfig
from tests.serving.server.conftest import tiny
from tests.serving.server.running import Client, answer, data_url, picture, png, running, words
from tests.tiny import image

GREY = Image.new("L", (96, 96), 90)


def url(text: str, kind: str = "image_url") -> list[dict[str, Any]]:
    return [{"type": kind, kind: {"url": text}}]


def truncated() -> str:
    return data_url(png(image(0, 96, 96))[:-900])


def bomb() -> str:
    """A picture of 100 megapixels in a few kilobytes."""
    return data_url(png(Image.new("1", (10_000, 10_000))))


CONTENTS: dict[str, tuple[Any, int, str]] = {
    "broken picture": (url(truncated()), 400, "This image is damaged"),
    "no picture": (url(data_url(b"hello")), 400, "not an image"),
    "empty picture": (url(data_url(b"")), 400, "not an image"),
    "a page": (url(data_url(b"<svg onload=alert(1)>")), 400, "not an image"),
    "too many pixels": (url(bomb()), 413, "takes 1 megapixels"),
    "too many bytes": (url(data_url(b"0" * 1_100_000)), 413, "more than 1 megabytes"),
    "wrong base64": (url("data:image/png;base64,%%%%"), 400, "base64 of a picture is wrong"),
    "cut base64": (url("data:image/png;base64,iVBORw0KGgo"), 400, "base64 of a picture is wrong"),
    "not base64": (url("data:image/png,abc"), 400, "not base64"),
    "no data": (url("data:"), 400, "not base64"),
    "a file": (url("file:///etc/passwd"), 400, "does not read"),
    "a path": (url("/etc/passwd"), 400, "expected data:"),
    "a remote file": (url("http://127.0.0.1:9/x.png"), 400, "does not fetch"),
    "another scheme": (url("ftp://127.0.0.1/x.png"), 400, "expected data:"),
    "no URL": (url(""), 400, "expected a data: URL"),
    "a number for a URL": ([{"type": "image_url", "image_url": 7}], 400, "expected a data: URL"),
    "nothing for a URL": ([{"type": "image_url"}], 400, "expected a data: URL"),
    "too many pictures": ([picture(GREY)] * 4, 400, "has 4 pictures; this server takes 3"),
    "a video": (url(data_url(b"x", "video/mp4"), "video_url"), 400, "takes no videos"),
    "a placeholder": ([picture(GREY), words("what is <image> ?")], 400, "stands for a picture"),
    "half a sign": (words("\ud800")["text"], 400, "Unicode"),
    "a sound": ([{"type": "input_audio", "input_audio": {}}], 400, "expected text, image_url or video_url"),
    "a part that is none": (["hello"], 400, "expected text, image_url or video_url"),
    "a text that is none": ([{"type": "text", "text": 7}], 400, "expected a string"),
    "no text": ([{"type": "text"}], 400, "expected a string"),
    "no content": (None, 400, "has the content None"),
    "no parts": ([], 400, "expected a text, or a list"),
    "a number": (7, 400, "has the content 7"),
    "a long text": ("what " * 100_000, 400, "the model reads 512 tokens"),
    "a text longer than the model": ("what " * 600, 400, "reads 512 in all"),
}
FIELDS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no messages": ({"messages": []}, 400, "expected a list of 1 to"),
    "messages that are none": ({"messages": "hello"}, 400, "expected a list of 1 to"),
    "a message that is none": ({"messages": ["hello"]}, 400, "expected an object with role and content"),
    "an unknown role": ({"messages": [{"role": "root", "content": "hi"}]}, 400, "has the role 'root'"),
    "a role that is none": ({"messages": [{"role": ["user"], "content": "hi"}]}, 400, "has the role"),
    "no role": ({"messages": [{"content": "hi"}]}, 400, "has the role None"),
    "calls of tools": (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, 400, "'tool_calls', which is not",
    ),
    "another model": ({"model": "gpt-5"}, 404, "'tiny' is"),
    "a model that is none": ({"model": 3}, 400, "model=3"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens=0"),
    "half a token": ({"max_tokens": 1.5}, 400, "max_tokens=1.5"),
    "too many tokens": ({"max_tokens": 5000}, 400, "5000 of an answer are asked for"),
    "far too many tokens": ({"max_tokens": 10**12}, 400, "expected a whole number from 1"),
    "a cold temperature": ({"temperature": -1}, 400, "temperature=-1"),
    "no temperature": ({"temperature": float("nan")}, 400, "temperature=nan"),
    "a text for a temperature": ({"temperature": "hot"}, 400, "temperature='hot'"),
    "nothing to draw from": ({"top_p": 0}, 400, "top_p=0"),
    "a negative seed": ({"seed": -1}, 400, "seed=-1"),
    "stops that are none": ({"stop": [1]}, 400, "stop=[1]"),
    "an empty stop": ({"stop": ""}, 400, "stop=''"),
    "a text for a flag": ({"stream": "yes"}, 400, "stream='yes'"),
    "several answers": ({"n": 5}, 400, "'n': 5 is not supported"),
    "tools": ({"tools": [{"type": "function"}]}, 400, "'tools'"),
    "a generation config": ({"generation_config": '{"num_beams": 100000}'}, 400, "'generation_config' is not known"),
    "template settings": ({"chat_template_kwargs": {"tokenize": False}}, 400, "is not known"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("what", CONTENTS)
def test_content_that_is_wrong(client: Client, what: str, stream: bool) -> None:
    content, status, told = CONTENTS[what]
    given, body = client.ask(content, stream=stream)
    assert (given, body["error"]["code"]) == (status, status)
    assert told in body["error"]["message"]
    assert len(body["error"]["message"]) < 400


@pytest.mark.parametrize("what", FIELDS)
def test_fields_that_are_wrong(client: Client, what: str) -> None:
    fields, status, told = FIELDS[what]
    given, body = client.ask("hello", **fields)
    assert (given, body["error"]["type"]) == (status, "invalid_request_error")
    assert told in body["error"]["message"]


@pytest.mark.parametrize(
    ("raw", "status", "told"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        (b"[" * 200_000, 400, "not JSON"),
        (b"[1]", 400, "expected a JSON object"),
        (b'{"messages": ' + b"9" * 10_000 + b"}", 400, "not JSON"),
        (b" " * 9_000_000, 413, "larger than 8 megabytes"),
    ],
)
def test_bodies_that_are_wrong(client: Client, raw: bytes, status: int, told: str) -> None:
    try:
        given, text = client.send("/v1/chat/completions", raw)
    except OSError:  # told before the whole body was sent, and the connection closed
        assert status == 413
        return
    assert given == status
    assert told in json.loads(text)["error"]["message"]


def test_a_body_without_a_length_is_read_up_to_the_limit(client: Client) -> None:
    host, port = client.base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        try:
            for _ in range(20):
                connection.sendall(b"f4240\r\n" + b" " * 1_000_000 + b"\r\n")
            connection.sendall(b"0\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 413"
        except OSError:  # closed before all was sent
            pass


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/reset"), ("POST", "/load_model"), ("GET", "/"), ("GET", "/v1/chat/completions")]
)
def test_paths_that_are_not_served(client: Client, method: str, path: str) -> None:
    status, text = client.send(path, b"{}" if method == "POST" else None)
    assert status in (404, 405)
    assert "is not served" in json.loads(text)["error"]["message"]


def test_a_client_that_leaves_does_no_harm(client: Client) -> None:
    host, port = client.base.removeprefix("http://").split(":")
    body = json.dumps({"messages": [{"role": "user", "content": [picture(GREY)]}], "stream": True}).encode()
    for part in (body, body[:50]):
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + part)
    assert answer(client.ask("list all ."))


def test_nothing_more_is_generated_for_a_client_that_has_left(client: Client) -> None:
    """Of a stream, and of an answer in one piece: 400 tokens take seconds, and the next request need not wait."""
    host, port = client.base.removeprefix("http://").split(":")
    before = client.metric('requests_total{code="499"}')
    for stream in (True, False):
        fields = {"stream": stream, "temperature": 2.0, "max_tokens": 480, "seed": 0}
        body = json.dumps({"messages": [{"role": "user", "content": [picture(GREY)] * 1}], **fields}).encode()
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
    answer(client.ask("list all ."))
    for _ in range(600):
        if not client.metric("requests_running"):
            break
        time.sleep(0.1)
    assert client.metric("requests_running") == 0
    assert client.metric('requests_total{code="499"}') > before


def test_more_requests_than_may_wait_are_told_to_come_again() -> None:
    service = tiny(TokenPrunerConfig(budget=2), max_waiting=2)
    with running(service) as client:
        service.metrics.add("requests_running", 2)
        status, body = client.ask("list all .")
        assert (status, body["error"]["message"]) == (503, "2 requests wait already; ask again later.")
        service.metrics.add("requests_running", -1)
        assert answer(client.ask("list all ."))
        assert client.metric("failures_total") == 0


def test_pictures_of_all_kinds_are_read(client: Client) -> None:
    for mode in ("RGBA", "P", "L", "1", "CMYK", "LA", "I;16"):
        for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
            file = io.BytesIO()
            try:
                Image.new(mode, (50, 40)).save(file, form)
                Image.open(io.BytesIO(file.getvalue())).load()
            except (OSError, ValueError):  # a form that has no such mode, or that Pillow cannot read back
                continue
            status, body = client.ask(url(data_url(file.getvalue())))
            assert status == 200, (mode, form, body)
    for size in ((1, 1), (1, 300), (300, 1)):
        assert client.ask([picture(Image.new("RGB", size))])[0] == 200


def test_nothing_was_a_failure_and_nothing_waits(client: Client) -> None:
    assert client.metric("failures_total") == 0
    assert client.metric("requests_running") == 0
    assert "is not served" not in answer(client.ask([picture(GREY), words("list all .")]))
