"""`hf-efficient serve` under load: clients that ask, hostile ones among them, and what is left behind.

    python -m benchmarks.serving.serve_load --clients 20 --seconds 60
    python -m benchmarks.serving.serve_load --engine vllm --output benchmarks/results/serve_load/vllm

starts the server on loopback with the shipped VLM, by transformers or by vLLM (in an environment that has it). Every
client asks again and again: mostly good requests (one or several pictures, text alone, streamed or not) whose answers
are known from a first, quiet round; one in three is hostile (broken pictures, wrong base64, too much of everything,
bodies that are not JSON, clients that leave). Written are good requests that failed or were answered otherwise, hostile
ones that were not told what is wrong (4xx), latencies, resident memory of the server over time, open files, and files
left in its folder and among temporary files.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.serving.load_requests import Ask, good_requests, hostile_requests
from hf_efficient.representation.evaluation.questions import TINY_VLM

WARM_SHARE = 0.25  # of the time, after which memory has to stand still
#: as in the tests of vLLM on a CPU; its server cannot choose a free port itself
VLLM_LINE = "--enforce-eager --max-model-len 512 --max-num-seqs 20 --disable-uvicorn-access-log"
VLLM_AROUND = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}  # fmt: skip


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Server:
    """The server as a process of its own, in an empty folder."""

    def __init__(self, folder: Path, budget: int, engine: str) -> None:
        self.work, self.temporary = folder / "work", folder / "temporary"
        for made in (self.work, self.temporary):
            made.mkdir()
        line = [sys.executable, "-m", "hf_efficient.cli", "serve", str(TINY_VLM), "--budget", str(budget)]
        line += ["--name", "tiny", "--max-pictures", "4"]
        environment = {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": str(Path.cwd())}
        port = free_port() if engine == "vllm" else 0
        line += ["--port", str(port)]
        if engine == "vllm":
            line += ["--engine", "vllm", "--dtype", "float32", f"--vllm-arguments={VLLM_LINE}"]
            environment = VLLM_AROUND | environment
        else:
            line += ["--device", "cpu", "--max-body-mb", "8"]
        self.log = folder / "log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(line, cwd=self.work, env=environment, stdout=out, stderr=out)
        self.host, self.port = ("127.0.0.1", port) if port else self.printed_address()
        while self.send(Ask("GET", "/health"))[0] != 200:
            self.check_alive()

    def printed_address(self) -> tuple[str, int]:
        """Host and port, once the server has named them."""
        while (found := re.search(r"http://([\d.]+):(\d+): ", self.log.read_text(errors="replace"))) is None:
            self.check_alive()
        return found[1], int(found[2])

    def check_alive(self) -> None:
        """Wait a moment; raise if the server has ended."""
        time.sleep(0.1)
        if self.process.poll() is not None:
            raise SystemExit(f"The server ended: {self.log.read_text(errors='replace')[-2000:]}")

    def send(self, ask: Ask) -> tuple[int, str]:
        """Status and text; 0 where the connection was closed or the client left."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=300)
        try:
            connection.request(ask.method, ask.path, ask.body, {"Content-Type": "application/json"})
            if ask.leaves:
                return 0, ""
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def processes(self) -> list[int]:
        """The server and what it has started: vLLM runs its engine in a process of its own."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found

    def resident(self) -> int:
        """Resident bytes of the server."""
        sizes = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in self.processes()]
        return 1024 * sum(int(size[1]) for size in sizes if size is not None)

    def open_files(self) -> int:
        """Open files and sockets of the server."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.processes())

    def stop(self) -> tuple[int, str]:
        """Exit code after SIGTERM, and what the server has printed."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=300), self.log.read_text(errors="replace")


def answer_of(status: int, text: str) -> str:
    """The text of a completion, streamed or not; what else there is, as it is."""
    if status != 200:
        return f"status {status}: {text[:200]}"
    if not text.startswith("data: "):
        return str(json.loads(text)["choices"][0]["message"]["content"])
    *events, end = [line.removeprefix("data: ") for line in text.splitlines() if line]
    parts = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    return "".join(parts) if end == "[DONE]" else f"cut: {text[-200:]}"


class Load:
    """What clients did and got."""

    def __init__(self, server: Server, good: list[Ask], hostile: list[Ask], seed: int) -> None:
        self.server, self.good, self.hostile, self.seed = server, good, hostile, seed
        self.right = [answer_of(*server.send(ask)) for ask in good]
        self.lock = threading.Lock()
        self.latencies: list[float] = []
        self.failed: list[str] = []
        self.untold: list[str] = []
        self.statuses: Counter[str] = Counter()

    def client(self, number: int, end: float) -> None:
        """Ask until the time is over."""
        chance = random.Random(self.seed + number)
        while time.monotonic() < end:
            if chance.random() < 1 / 3:
                self.be_hostile(chance.choice(self.hostile))
            else:
                self.be_good(chance.randrange(len(self.good)))

    def be_good(self, index: int) -> None:
        """Ask what has a known answer."""
        start = time.monotonic()
        given = answer_of(*self.server.send(self.good[index]))
        with self.lock:
            self.latencies.append(time.monotonic() - start)
            if given != self.right[index]:
                self.failed.append(f"{given!r} instead of {self.right[index]!r}")

    def be_hostile(self, ask: Ask) -> None:
        """Ask what is to be refused."""
        status, text = self.server.send(ask)
        with self.lock:
            self.statuses[f"{ask.name}: {status or 'closed'}"] += 1
            told = 400 <= status < 500 and ("message" in text or "detail" in text)
            if not (ask.leaves or (status == 0 and ask.large) or told):
                self.untold.append(f"{ask.name}: {status} {text[:200]}")


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Load a server, and count."""
    server = Server(folder, arguments.budget, arguments.engine)
    before = set(TINY_VLM.rglob("*"))
    load = Load(server, good_requests(arguments.seed), hostile_requests(), arguments.seed)
    start = time.monotonic()
    end = start + arguments.seconds
    memory, files = [], []
    with ThreadPoolExecutor(arguments.clients) as pool:
        clients = [pool.submit(load.client, number, end) for number in range(arguments.clients)]
        while not all(client.done() for client in clients):
            memory.append((time.monotonic() - start, server.resident()))
            files.append(server.open_files())
            time.sleep(1)
        for client in clients:
            client.result()
    lasted = time.monotonic() - start
    time.sleep(2)
    idle_files = server.open_files()
    metrics = server.send(Ask("GET", "/metrics"))[1]
    code, printed = server.stop()
    warm = [size for at, size in memory if at >= WARM_SHARE * arguments.seconds]
    left = [str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() and p != server.log]
    counted = re.search(r"\nhf_efficient_failures_total (\d+)", metrics)  # vLLM has metrics of its own
    return {
        "clients": arguments.clients,
        "seconds": round(lasted, 1),
        "good requests": len(load.latencies),
        "good requests that failed or were answered otherwise": len(load.failed),
        "hostile requests": sum(load.statuses.values()),
        "hostile requests not told what is wrong": len(load.untold),
        "good requests a second": round(len(load.latencies) / lasted, 2),
        "median seconds of a good request": round(statistics.median(load.latencies), 3),
        "95th percentile of seconds": round(sorted(load.latencies)[int(0.95 * (len(load.latencies) - 1))], 3),
        "resident MB when warm": round(warm[0] / 1e6, 1),
        "resident MB at the end": round(warm[-1] / 1e6, 1),
        "resident MB at most": round(max(size for _, size in memory) / 1e6, 1),
        "open files at most": max(files),
        "open files at rest": idle_files,
        "files left": len(left) + len(set(TINY_VLM.rglob("*")) - before),
        "exit code after SIGTERM": code,
        "tracebacks in the log": printed.count("Traceback"),
        **({} if counted is None else {"failures counted by the server": int(counted[1])}),
        "examples": {"failed": load.failed[:5], "untold": load.untold[:5], "left": left[:5]},
        "statuses": dict(sorted(load.statuses.items())),
        "memory": [[round(at, 1), size] for at, size in memory],
    }


def parser() -> argparse.ArgumentParser:
    """Options."""
    made = common_parser(__doc__, "serve_load")
    made.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    made.add_argument("--clients", type=at_least_one, default=20, help="that ask at the same time")
    made.add_argument("--seconds", type=at_least_one, default=60, help="during which they ask")
    made.add_argument("--budget", type=at_least_one, default=18, help="visual tokens kept of a picture's 144")
    made.add_argument("--seed", type=int, default=0, help="of what is asked when")
    return made


def main() -> None:
    """Run and write."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(arguments, Path(folder))
    record_run(arguments.output)
    write_json(arguments.output / "figures.json", figures)
    shown = [(name, value) for name, value in figures.items() if not isinstance(value, (dict, list))]
    write_table(arguments.output / "table.md", markdown(["", "figure"], shown))
    failed = figures["good requests that failed or were answered otherwise"]
    if failed or figures["hostile requests not told what is wrong"] or figures["files left"]:
        raise SystemExit(f"Not as it must be: {figures['examples']}")


if __name__ == "__main__":
    main()
