"""Many clients at once on a Space that runs as it would on a server: ordinary ones, and ones that mean harm."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import ROOT

JSON = {"content-type": "application/json"}
SERVE = """
import sys
from pathlib import Path
from tests.spaces.running import import_app
app = import_app(Path(sys.argv[1]))
for setting in sys.argv[3:]:
    name, value = setting.split("=")
    setattr(app, name, int(value))
app.demo.queue(max_size=app.LONGEST_QUEUE).launch(
    server_name="127.0.0.1", server_port=int(sys.argv[2]), quiet=True, **app.LAUNCH_OPTIONS
)
"""


@dataclass
class Server:
    """A Space in a process of its own.

    Args:
        url: of its API.
        process: the process.
        files: folder of everything that it writes.
    """

    url: str
    process: subprocess.Popen[bytes]
    files: Path

    def memory(self) -> int:
        """Bytes of memory that the process holds (RSS)."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def left(self) -> set[Path]:
        """Files that lie in its folder."""
        return {path for path in self.files.rglob("*") if path.is_file()}


@contextmanager
def running(space: Path, files: Path, keep_seconds: float, *settings: str) -> Iterator[Server]:
    """The Space, until the block ends; `settings` are numbers of its module to change."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files.mkdir(parents=True)
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    own = {"GRADIO_TEMP_DIR": str(files), "TMPDIR": str(files), "SPACE_KEEP_SECONDS": str(keep_seconds)}
    with open(files.parent / "log.txt", "wb") as log:
        command = [sys.executable, "-c", SERVE, str(space), str(port), *settings]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **quiet, **own}, stdout=log, stderr=log)
    try:
        server = Server(f"http://127.0.0.1:{port}/gradio_api", process, files)
        for _ in range(600):
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/config", timeout=5).status_code == 200:
                    break
            assert process.poll() is None, (files.parent / "log.txt").read_text()[-3000:]
            time.sleep(0.2)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


class Client:
    """A client of a Space's HTTP API."""

    def __init__(self, server: Server) -> None:
        self.server, self.http = server, httpx.Client(timeout=300)

    def upload(self, content: bytes, name: str) -> dict[str, Any]:
        """A file, as later calls name it."""
        answer = self.http.post(f"{self.server.url}/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def submit(self, endpoint: str, data: Any) -> httpx.Response:
        """Begin a call."""
        return self.http.post(f"{self.server.url}/call/{endpoint}", json={"data": data})

    def call(self, endpoint: str, data: Any) -> tuple[str, Any]:
        """How a call ended, "complete" or "error", and with what."""
        answer = self.submit(endpoint, data)
        if answer.status_code != 200:
            return f"status {answer.status_code}", answer.text
        kind = "nothing"
        with self.http.stream("GET", f"{self.server.url}/call/{endpoint}/{answer.json()['event_id']}") as lines:
            for line in lines.iter_lines():
                if line.startswith("event:"):
                    kind = line.split(":", 1)[1].strip()
                elif line.startswith("data:") and kind in ("complete", "error"):
                    return kind, json.loads(line.split(":", 1)[1])
        return "nothing", None

    def fetch(self, file: dict[str, Any]) -> bytes:
        """A result."""
        answer = self.http.get(f"{self.server.url}/file={file['path']}")
        answer.raise_for_status()
        return answer.content


def harm(client: Client, draw: random.Random, endpoint: str, good: list[Any], bad: list[tuple[str, bytes]]) -> str:
    """One attempt at harm, of many kinds; what it was."""
    url, file = client.server.url, {"meta": {"_type": "gradio.FileData"}}
    kind = draw.choice(["value", "upload", "path", "shape", "json", "large", "torn", "leave", "file", "flood"])
    worst: list[Any] = [None, -1, 1e308, "9" * 400, [], {}, True, "\0", "../..", ["x"] * 50, 10**30, {"path": 7}]
    if kind == "value":
        client.call(endpoint, [draw.choice(worst) if draw.random() < 0.5 else value for value in good])
    elif kind == "upload" and bad:
        name, content = draw.choice(bad)
        client.call(endpoint, [client.upload(content, name), *good[1:]])
    elif kind == "path":
        path = draw.choice(["/etc/passwd", "http://127.0.0.1:9/x.png", f"{client.server.files}/../log.txt", "x" * 5000])
        client.call(endpoint, [{**file, "path": path}, *good[1:]])
    elif kind == "shape":
        client.call(draw.choice([endpoint, "nothing", "../x"]), draw.choice([[], {}, None, good * 300, "x"]))
    elif kind == "json":
        client.http.post(f"{url}/queue/join", content=b'{"data": [' * 2000, headers=JSON)
    elif kind == "large":
        with suppress(httpx.HTTPError):
            client.http.post(f"{url}/queue/join", content=b"x" * (5 << 20))
    elif kind == "torn":  # an upload that breaks off
        port = int(url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as line:
            head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            line.sendall(head + b"Content-Length: 900000\r\n\r\n" + part + b"x" * 200_000)
    elif kind == "leave":  # a call whose answer nobody waits for
        client.submit(endpoint, good)
    elif kind == "file":
        client.http.get(f"{url}/file=/etc/passwd")
        client.http.get(f"{url}/file=../../../../etc/passwd")
    elif kind == "flood":
        for _ in range(10):
            client.submit(endpoint, [None] * len(good))
    return kind


@dataclass
class Load:
    """What became of a load.

    Args:
        answered: ordinary requests.
        failed: how other ordinary requests ended.
        harmed: attempts by kind.
        longest: seconds of the slowest ordinary request.
    """

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    harmed: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0


def load(
    server: Server, ordinary: Callable[[Client, random.Random], str | None],
    hostile: Callable[[Client, random.Random], str], clients: int, seconds: float,
) -> Load:  # fmt: skip
    """Two thirds of the clients ask what a user would, the others mean harm.

    Args:
        server: the Space.
        ordinary: one request; None, or what was wrong with its answer.
        hostile: one attempt; its kind.
        clients: at once.
        seconds: after which no request begins.
    """
    result, lock, end = Load(), threading.Lock(), time.monotonic() + seconds

    def run(number: int) -> None:
        client, draw = Client(server), random.Random(number)
        while time.monotonic() < end:
            begin = time.monotonic()
            if number % 3 == 2:
                with suppress(httpx.HTTPError, OSError):
                    kind = hostile(client, draw)
                    with lock:
                        result.harmed[kind] += 1
                time.sleep(0.2)
                continue
            try:
                wrong = ordinary(client, draw)
            except Exception as error:
                wrong = repr(error)
            with lock:
                result.answered += wrong is None
                result.failed += [wrong] if wrong else []
                result.longest = max(result.longest, time.monotonic() - begin)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return result
