"""`hf-efficient serve --engine vllm` from end to end: a server on loopback, good and bad requests, its end."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_efficient.representation.evaluation.questions import TINY_VLM, load_evaluation_set
from tests.serving.vllm.conftest import ROOT

TOKENS = 18
FURTHER = "--enforce-eager --max-model-len 256 --max-num-seqs 4 --trust-request-mm-kwargs"


def send(base: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of a response, whatever it is."""
    raw = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, raw, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return status, json.loads(text) if text else None


def body(image: Image.Image | str, question: str, **fields: Any) -> dict[str, Any]:
    """A chat completion about a picture, which is given as its URL where it is a text."""
    if not isinstance(image, str):
        file = io.BytesIO()
        image.save(file, "PNG")
        image = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 8, **fields}


@pytest.fixture(scope="module")
def server(vllm: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a server of the tiny VLM with ITG."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_efficient.cli", "serve", str(TINY_VLM), "--name", "tiny", "--method", "itg"]
    command += ["--budget", str(TOKENS), "--engine", "vllm", "--port", str(port), "--dtype", "float32"]
    command += ["--max-megapixels", "1"]
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*command, f"--vllm-arguments={FURTHER}"], cwd=ROOT, stdout=out, stderr=out,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        base, end = f"http://127.0.0.1:{port}", time.monotonic() + 600
        while True:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(Path(log).read_text()[-3000:])
            try:
                send(base, "/health")
                break
            except OSError:
                time.sleep(1)
        yield base, process
    finally:
        process.kill()
        process.wait()


def test_server(server: tuple[str, subprocess.Popen[bytes]]) -> None:
    base, process = server
    rows = [(scene.image, q.question, q.answer) for scene in load_evaluation_set()[:2] for q in scene.questions]
    right = 0
    for image, question, answer in rows:
        status, reply = send(base, "/v1/chat/completions", body(image, question))
        assert status == 200, reply
        right += reply["choices"][0]["message"]["content"].split() == answer.split()
    assert right >= len(rows) - 1

    image, question, _ = rows[0]
    counted = {}
    for budget in (TOKENS, 4):
        asked = body(image, question, mm_processor_kwargs={"token_budget": budget})
        counted[budget] = send(base, "/v1/chat/completions", asked)[1]["usage"]["prompt_tokens"]
    assert counted[TOKENS] - counted[4] == TOKENS - 4
    assert counted[TOKENS] == send(base, "/v1/chat/completions", body(image, question))[1]["usage"]["prompt_tokens"]

    for bad, message in (
        (body(image, question, mm_processor_kwargs={"token_budget": TOKENS + 1}), "was started for"),
        (body(image, question, mm_processor_kwargs={"token_budget": "all"}), "expected a whole number"),
        (body("data:image/png;base64,AAAA", question), "image"),
        (body(Image.new("1", (1001, 1000)), question), "maximum of 1000000 pixels"),
        (body(image, "red " * 3000), "length"),
    ):
        status, reply = send(base, "/v1/chat/completions", bad)
        assert status == 400, reply
        assert message in reply["error"]["message"]
    assert send(base, "/health")[0] == 200

    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) in (0, -signal.SIGTERM)
