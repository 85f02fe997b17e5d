"""What players without torch cost: `python -m benchmarks.video.players`.

A frame at x2, width 8, 2 blocks, by the player and by its bare network, in CPU time of one thread, so that other
processes count little: torch, onnxruntime, and the page in Chromium by WebAssembly (of which CPU time is that of the
page's worker), served by its own server. The share of real time is that of one such thread at 25 frames a second. Two
threads are compared with one by the clock, in turns. Without Chromium or onnxruntime-web the page is left out. Clips
are made by FFmpeg: what they show does not matter here.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import imageio_ffmpeg
import numpy as np
import psutil
import torch

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.export.export import export_bundle
from hf_efficient.video.export.player import OnnxPlayer
from hf_efficient.video.export.web import find_runtime
from hf_efficient.video.files.reader import read_frames
from hf_efficient.video.patches import to_tensor
from hf_efficient.video.play.player import Player

RATE = 25
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
SHOW = "async ([first, count]) => { for (let n = 0; n < count; n++) await window.player.show(first + n); }"


def made_bundle(folder: Path, size: str, frames: int) -> Path:
    """A clip and its bundle, barely trained."""
    clip = folder / f"{size}.mp4"
    source = ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={RATE}", "-frames:v", str(2 * frames + 2)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, "-pix_fmt", "yuv420p", str(clip)]
    subprocess.run(command, check=True)
    options: dict[str, Any] = {
        "method": "jstdo", "num_features": 8, "num_blocks": 2, "steps": 4, "batch_size": 4, "max_patches": 64,
    }  # fmt: skip
    fit_video(clip, folder / size, progress_bar=False, device="cpu", lr_preset="ultrafast", **options)
    return folder / size


@torch.no_grad()
def in_python(bundle: Path, exported: Path, frames: int, rounds: int) -> dict[str, float]:
    """CPU milliseconds a frame of both players and of their bare networks, in turns; medians."""
    ours, onnx = Player(bundle), OnnxPlayer(exported, threads=1)
    lows = [frame.rgb for frame in islice(read_frames(ours.bundle.low_resolution), frames)]
    labels, radius = next(ours.labels()), onnx.export.networks[0].radius
    tensors = [to_tensor(low).to(memory_format=torch.channels_last) for low in lows]
    sides = [(0, 0), (0, 0), (radius, radius), (radius, radius)]
    padded = [np.pad(x.numpy(), sides, mode="edge") for x in tensors]
    calls: dict[str, Callable[[], object]] = {
        "torch": lambda: [ours.enlarge(low, labels) for low in lows],
        "torch, bare": lambda: [ours.experts[0](x) for x in tensors],
        "onnxruntime": lambda: [onnx.enlarge(low, labels) for low in lows],
        "onnxruntime, bare": lambda: [onnx.networks[0].run(None, {"frame": x}) for x in padded],
    }
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            before = time.thread_time()
            call()
            spent[name].append(1e3 * (time.thread_time() - before) / frames)
    return {name: median(values) for name, values in spent.items()}


def worker_seconds(processes: list[psutil.Process]) -> float:
    """CPU seconds of the threads of a browser that run a page's workers."""
    total = 0.0
    for task in (path for process in processes for path in Path(f"/proc/{process.pid}/task").glob("*")):
        if (task / "comm").read_text().startswith("DedicatedWorker"):
            total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


@contextmanager
def served(exported: Path) -> Iterator[str]:
    """The address of a folder that its own server serves, which isolates the page."""
    command = [sys.executable, str(exported / "serve.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def opened(browser: Any, address: str, choice: str) -> Any:
    """A tab in which the page is ready and its network compiled."""
    page = browser.new_page()
    page.set_default_timeout(300_000)
    page.goto(f"{address}/?{choice}")
    page.wait_for_selector("#status:has-text('Frame 1 of')")
    page.evaluate(SHOW, [1, 2])
    return page


def in_browser(exported: Path, frames: int, rounds: int) -> dict[str, Any]:
    """CPU milliseconds a frame of the page's worker with one thread, and of the network in it; time with two over one.

    Both tabs are shown in turns. Of the times, in which other processes count, the shortest are compared.
    """
    from playwright.sync_api import sync_playwright

    spent: dict[int, list[float]] = {1: [], 2: []}
    cpu: list[float] = []
    with served(exported) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        pages = {n: opened(browser, address, f"runtime=wasm&threads={n}") for n in spent}
        assert all(str(n) in page.text_content("#status") for n, page in pages.items()), "the page is not isolated"
        processes = psutil.Process().children(recursive=True)
        for turn in range(rounds):
            for n, page in pages.items():
                before = worker_seconds(processes)
                page.evaluate(SHOW, [1 + turn % 2 * frames, frames])
                if n == 1:
                    cpu.append(1e3 * (worker_seconds(processes) - before) / frames)
                spent[n] += page.evaluate(f"window.player.counts.ms.slice(-{frames})")
        share = pages[1].evaluate(f"""() => {{
            const sum = (values) => values.slice(-{frames}).reduce((a, b) => a + b);
            return sum(window.player.counts.network) / sum(window.player.counts.ms);
        }}""")
        browser.close()
    page = median(cpu)
    return {"page": page, "page, bare": share * page, "two threads over one": min(spent[2]) / min(spent[1])}


def measured(size: str, runtime: Path | None, arguments: argparse.Namespace) -> dict[str, float]:
    """All players at one size."""
    with tempfile.TemporaryDirectory() as folder:
        bundle, exported = made_bundle(Path(folder), size, arguments.frames), Path(folder) / "exported"
        export_bundle(bundle, exported, "web" if runtime else "onnx", runtime)
        row = in_python(bundle, exported, arguments.frames, arguments.rounds)
        return row | (in_browser(exported, arguments.frames, arguments.rounds) if runtime else {})


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "players", threads=True)
    made.add_argument("--sizes", nargs="+", default=["640x272", "1280x720"])
    made.add_argument("--frames", type=int, default=8)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--runtime", type=Path, help="folder of onnxruntime-web (default: npm fetches it)")
    return made


def main(argv: list[str] | None = None) -> None:
    """Measure, and write a table."""
    arguments = parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    try:
        runtime = find_runtime(arguments.runtime) if shutil.which("chromium") else None
    except FileNotFoundError as error:
        print(f"the page is left out: {error}")
        runtime = None
    arguments.output.mkdir(parents=True, exist_ok=True)
    record_run(arguments.output)
    results = Rows(arguments.output / "results.json", arguments, ("frames", "rounds"))
    for size in arguments.sizes:
        results.add(size, measured(size, runtime, arguments))
    rows = [
        [size, name, f"{row[name]:.1f}", f"{row[f'{name}, bare']:.1f}", f"{row[name] / row[f'{name}, bare']:.2f}",
         f"{100 * 1e3 / RATE / row[name]:.0f} %"]
        for size, row in results.rows.items() for name in ("torch", "onnxruntime", "page") if name in row
    ]  # fmt: skip
    for size, row in results.rows.items():
        if "two threads over one" in row:
            faster = row["two threads over one"]
            reached = f"{100 * 1e3 / RATE / (row['page'] * faster):.0f} %, two threads"
            rows.append([size, "page, two threads over one", "", "", f"{faster:.2f}", reached])
    head = ["played size", "player", "a frame, CPU ms", "bare network", "ratio", "of real time, one thread"]
    write_table(arguments.output / "table.md", markdown(head, rows))


if __name__ == "__main__":
    main()
