"""`hf-efficient serve --engine vllm` from end to end: a server on loopback, good and bad requests, its end."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
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


@contextmanager
def running(folder: Path, further: str = "") -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a server of the tiny VLM with ITG, started with further arguments of vLLM's."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_efficient.cli", "serve", str(TINY_VLM), "--name", "tiny", "--method", "itg"]
    command += ["--budget", str(TOKENS), "--engine", "vllm", "--port", str(port), "--dtype", "float32"]
    command += ["--max-megapixels", "1"]
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*command, f"--vllm-arguments={FURTHER} {further}"], cwd=ROOT, stdout=out, stderr=out,
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
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def questions() -> list[tuple[Image.Image, str, str]]:
    """Pictures, questions and right answers."""
    return [(scene.image, q.question, q.answer) for scene in load_evaluation_set()[:2] for q in scene.questions]


def test_two_engines_behind_one_server(vllm: Any, engine: Callable[..., Any], tmp_path: Path) -> None:
    """Data parallelism: the answers of one engine, and both have answered."""
    asked = [body(image, question) for image, question, _ in questions()]
    greedy = vllm.SamplingParams(temperature=0, max_tokens=8)
    llm = engine(TINY_VLM, {"method": "itg", "budget": TOKENS}, max_model_len=256)
    outputs = llm.chat([one["messages"] for one in asked], greedy, use_tqdm=False)
    expected = [(one.outputs[0].text, len(one.prompt_token_ids)) for one in outputs]
    with running(tmp_path, "--data-parallel-size 2") as (base, _), ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda one: send(base, "/v1/chat/completions", one), asked))
        assert [status for status, _ in replies] == [200] * len(asked)
        found = [(reply["choices"][0]["message"]["content"], reply["usage"]["prompt_tokens"]) for _, reply in replies]
        assert found == expected
        with urllib.request.urlopen(base + "/metrics", timeout=300) as response:
            metrics = response.read().decode()
    counts = re.findall(
        r'vllm:request_success_total\{engine="(\d)",finished_reason="(?:stop|length)".*\} ([\d.]+)', metrics
    )
    answered = {rank: sum(float(count) for one, count in counts if one == rank) for rank, _ in counts}
    assert set(answered) == {"0", "1"}
    assert min(answered.values()) > 0
    assert sum(answered.values()) == len(asked)


def test_one_process_does_not_take_two_engines(vllm: Any, engine: Callable[..., Any]) -> None:
    """What `LLM` says of data parallelism on its own."""
    with pytest.raises(ValueError, match="not supported for single-process usage"):
        engine(TINY_VLM, {"budget": TOKENS}, data_parallel_size=2)


def test_server(vllm: Any, tmp_path: Path) -> None:
    with running(tmp_path) as (base, _):
        check_server(base)


def check_server(base: str) -> None:
    """Answers, budgets of requests, and requests that are refused."""
    rows = questions()
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
