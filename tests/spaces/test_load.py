"""Every Space under load: no ordinary request fails, memory stays, and no file is left when its time is over."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.evaluation.questions import EVALUATION_SET
from tests.conftest import ROOT
from tests.spaces.load import Client, Load, Server, harm, load, running

EXAMPLE = EVALUATION_SET / "images" / "00000.png"
Ordinary = Callable[[Client, random.Random], str | None]
Hostile = Callable[[Client, random.Random], str]


def bad_files(folder: Path) -> list[tuple[str, bytes]]:
    """Images and videos that are none, or cost more than they look."""
    Image.new("L", (16, 20000)).save(folder / "thin.png")
    Image.new("1", (8000, 5001)).save(folder / "large.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "cut.png")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nlist.m3u8\n")
    (folder / "text.mp4").write_text("no video")
    held = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return [*held.items(), ("cut.png", held["cut.png"][:3000])]


def visual_tokens(folder: Path) -> tuple[list[str], Ordinary, Hostile]:
    image, bad = EXAMPLE.read_bytes(), bad_files(folder)

    def ordinary(client: Client, draw: random.Random) -> str | None:
        shown = client.upload(image, "scene.png")
        call = [shown, "list all .", draw.choice(REPRESENTATION.names), draw.randrange(1, 145)]
        kind, data = client.call("ask", call)
        if kind != "complete":
            return f"{kind}: {data}"
        return None if len(client.fetch(data[0])) > 1000 and "Visual tokens" in data[3] else f"odd: {data}"

    def hostile(client: Client, draw: random.Random) -> str:
        good = [client.upload(image, "scene.png"), "list all .", "id_pruner", 12]
        return harm(client, draw, "ask", good, bad)

    return [], ordinary, hostile


def video(folder: Path) -> tuple[list[str], Ordinary, Hostile]:
    from tests.video.clips import make_clip, moving_frames

    bad = bad_files(folder)
    clip = make_clip(folder / "garden.mp4", moving_frames(6, 96, 64), audio="aac").read_bytes()

    def ordinary(client: Client, draw: random.Random) -> str | None:
        kind, data = client.call("fit", [client.upload(clip, "garden.mp4"), 2, draw.choice(["jstdo", "single"]), 20])
        if kind != "complete":
            return f"{kind}: {data}"
        played = data[2].get("video", data[2])
        return None if min(len(client.fetch(played)), len(client.fetch(data[3]))) > 1000 else f"odd: {data}"

    def hostile(client: Client, draw: random.Random) -> str:
        return harm(client, draw, "fit", [client.upload(clip, "garden.mp4"), 2, "jstdo", 20], bad)

    return [], ordinary, hostile


def training(folder: Path) -> tuple[list[str], Ordinary, Hostile]:
    def ordinary(client: Client, draw: random.Random) -> str | None:
        method, pruned = draw.choice(["plain", "S2-SAM", "SAM"]), draw.choice(["all weights", "95 % pruned"])
        call: list[Any] = [[method], 0.2, 40, pruned, "bidst", draw.randrange(100)]
        kind, data = client.call("compare", call)
        if kind != "complete":
            return f"{kind}: {data}"
        return None if len(client.fetch(data[0])) > 1000 and "sharpness" in data[1] else f"odd: {data}"

    def hostile(client: Client, draw: random.Random) -> str:
        return harm(client, draw, "compare", [["plain"], 0.2, 40, "all weights", "bidst", 0], [])

    return ["STEPS=100"], ordinary, hostile


def planner(folder: Path) -> tuple[list[str], Ordinary, Hostile]:
    def ordinary(client: Client, draw: random.Random) -> str | None:
        kind, data = client.call("plan", [100, draw.choice([40, 60]), 100, ["fewer visual tokens"], 8])
        if kind != "complete":
            return f"{kind}: {data}"
        return None if len(client.fetch(data[1])) > 1000 and "What binds" in data[0] else f"odd: {data}"

    def hostile(client: Client, draw: random.Random) -> str:
        return harm(client, draw, "plan", [100, 50, 100, ["fewer visual tokens"], 8], [])

    return [], ordinary, hostile


SPACES = {"visual_tokens": visual_tokens, "video": video, "training": training, "planner": planner}


def under_load(
    name: str, folder: Path, clients: int, seconds: float, keep: float, warm_up: float = 0
) -> tuple[Load, Server, float]:
    """The load, the Space (ended), and the share by which its memory grew."""
    (folder / "made").mkdir()
    settings, ordinary, hostile = SPACES[name](folder / "made")
    with running(ROOT / "spaces" / name, folder / "files", keep, *settings) as server:
        page = server.left()
        assert ordinary(Client(server), random.Random(0)) is None
        load(server, ordinary, hostile, clients, warm_up)
        before = server.memory()
        result = load(server, ordinary, hostile, clients, seconds)
        growth = server.memory() / before - 1
        assert server.process.poll() is None
        wait_until_gone(server, keep, page)
    print(f"\n{name}: {result.answered} answered, slowest {result.longest:.1f} s, {dict(result.harmed)}, "
          f"memory {before / 2**20:.0f} MiB {growth:+.1%}")  # fmt: skip
    return result, server, growth


def wait_until_gone(server: Server, keep: float, page: set[Path]) -> None:
    """Only what the page shows from its beginning is left a little after the limit."""
    end = time.monotonic() + 3 * keep + 60  # jobs of clients that left may still run
    while (left := server.left() - page) and time.monotonic() < end:
        time.sleep(0.5)
    assert not left
    assert not list(server.files.rglob("work_*"))


def test_a_few_clients(tmp_path: Path) -> None:
    result, _, _ = under_load("visual_tokens", tmp_path, clients=3, seconds=4, keep=3)
    assert result.failed == []
    assert result.answered >= 2
    assert sum(result.harmed.values()) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_twenty_clients_for_a_minute(name: str, tmp_path: Path) -> None:
    result, _, growth = under_load(name, tmp_path, clients=20, seconds=60, keep=5, warm_up=20)
    assert result.failed == []
    assert result.answered >= 13
    assert growth < 0.1


@pytest.mark.slow
def test_files_that_wait_in_the_queue_outlive_the_limit(tmp_path: Path) -> None:
    result, _, _ = under_load("video", tmp_path, clients=8, seconds=5, keep=0.5)
    assert result.failed == []
