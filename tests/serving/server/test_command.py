"""`hf-efficient serve` as a process: which pruner it serves, and how it ends."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.representation.evaluation.questions import TINY_VLM, load_evaluation_set, load_vlm
from tests.cli.shell import error_of
from tests.conftest import ROOT
from tests.serving.server.running import Client, picture, words

SCENE = load_evaluation_set(limit=1)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as `hf-efficient prune` saves it, with 18 tokens."""
    saved = tmp_path_factory.mktemp("pruned")
    for part in attach_token_pruner(*load_vlm(), TokenPrunerConfig(budget=18)):
        part.save_pretrained(saved)
    return saved


@contextmanager
def command(*arguments: object) -> Iterator[tuple[Any, Client]]:
    """The process, and a client of it when it serves."""
    line = [sys.executable, "-m", "hf_efficient.cli", "serve", *map(str, arguments), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        for text in process.stdout:
            if found := re.search(r"http://([\d.:]+): ", text):
                client = Client(f"http://{found[1]}")
                for _ in range(100):
                    try:
                        client.send("/health")
                        break
                    except OSError:
                        time.sleep(0.1)
                yield process, client
                return
        raise AssertionError("it ended before it served")
    finally:
        process.kill()
        process.wait()


def prompt_tokens(client: Client) -> int:
    status, body = client.ask([picture(SCENE.image), words("list all .")])
    assert status == 200, body
    return int(body["usage"]["prompt_tokens"])


def test_the_saved_pruner_is_served_and_a_signal_lets_requests_end(folder: Path) -> None:
    files = sorted(folder.iterdir())
    with command(folder, "--name", "tiny") as (process, client):
        assert prompt_tokens(client) == 18 + 4
        replies: list[tuple[int, Any]] = []

        def ask() -> None:
            replies.append(client.ask([picture(SCENE.image)] * 4, temperature=2.0, max_tokens=300))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        while client.metric("requests_running") < 6 and not replies:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert [status for status, _ in replies] == [200] * 6
        assert process.wait(60) == 0
        assert process.stdout.read().endswith("Stopped.\n")
        with pytest.raises(URLError, match="refused"):
            client.send("/health")
    assert sorted(folder.iterdir()) == files


def test_options_override_the_saved_pruner(folder: Path) -> None:
    with command(folder, "--name", "tiny", "--method", "itg", "--budget", "0.25") as (process, client):
        assert prompt_tokens(client) == 36 + 4
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{tiny}"], "was saved without a token pruner: say how many visual tokens to keep, such as --budget 64"),
        (["no_such_folder"], "'no_such_folder' is missing: there is no such folder, and token_pruner_config.json of"),
        (["{tiny}", "--budget", "0"], "--budget 0 keeps nothing"),
        (["/no/such/folder", "--budget", "3"], "'/no/such/folder' is missing"),
        (["{tiny}", "--budget", "3", "--continuous-batching"], "--continuous-batching is refused: transformers'"),
        (["{tiny}", "--budget", "3", "--port", "99999"], "'99999' is not a port"),
        (["{tiny}", "--budget", "3", "--host", "192.0.2.1"], "--host 192.0.2.1, --port 8000 cannot be listened at"),
        (["{tiny}", "--budget", "3", "--max-frames", "0"], "--max-frames 0 is out of range"),
        (["{tiny}", "--budget", "3", "--allow-files", "/no/such"], "--allow-files /no/such is not a folder"),
        (["{tiny}", "--budget", "3", "--vllm-arguments=--seed 3"], "are for `vllm serve`: add --engine vllm"),
        (["{tiny}", "--budget", "3", "--dtype", "nonsense", "--port", "0"], "Unsupported dtype: 'nonsense'"),
    ],
)
def test_mistakes_are_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in error_of(capsys, "serve", *[a.format(tiny=TINY_VLM) for a in arguments])
