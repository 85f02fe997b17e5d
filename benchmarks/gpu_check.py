"""A check on a GPU that fits ten minutes: `python -m benchmarks.gpu_check`

For a machine with torch and a GPU and little else. Each part runs in a process of its own with its own time limit, so
that a part that fails, hangs or runs out of memory takes no other along; results.json and table.md are written anew as
parts end, and hold what a part had found when its time was up.

- correctness: pruned prompts in float32 and bfloat16 with sdpa, flash and flex attention against the CPU in float32
- selection: its time against the prefill it precedes, from 576, 2880 and 10,000 tokens
- prefill: pruned against a prompt that was never longer, and whole calls
- itg: generated tokens against those of the CPU, and their time
- sam: steps of S2-SAM, ZO-SAM and SAM against the plain step, ViT-B
- two_of_four: layers that BiDST trained in 2:4, compressed, and layers of a language model's size

A figure with a bound must keep it, or the exit status is 1. No time has a bound: times depend on the machine. Models
have random weights. It needs transformers, accelerate, peft and Pillow; where they are not installed and there is no
network, `--wheels FOLDER` takes them from a folder that `pip download` filled. `--device cpu --tiny` tries the check
itself, in a minute.
"""

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import TINY, Sizes
from benchmarks.harness.options import common_parser
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown

ROOT = Path(__file__).parents[1]
NEEDED = "transformers accelerate peft Pillow"


@dataclass(frozen=True)
class Part:
    """Where a part's function is, and the seconds it may take, imports included."""

    module: str
    function: str
    seconds: int


PARTS = {
    "correctness": Part("benchmarks.gpu.correctness", "correctness", 150),
    "selection": Part("benchmarks.gpu.costs", "selection", 90),
    "prefill": Part("benchmarks.gpu.costs", "pruned_prefill", 90),
    "itg": Part("benchmarks.gpu.costs", "itg", 60),
    "sam": Part("benchmarks.gpu.training", "sam_steps", 110),
    "two_of_four": Part("benchmarks.gpu.training", "two_of_four", 70),
}


def run(name: str, arguments: argparse.Namespace, paths: list[str], scratch: Path) -> dict[str, Any]:
    """Run a part in a process; how it ended, and what it found."""
    found, log = scratch / f"{name}.json", scratch / f"{name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", name, str(found)]
    command += ["--device", arguments.device, *(["--tiny"] if arguments.tiny else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    limit, began = arguments.limit or PARTS[name].seconds, time.perf_counter()
    with open(log, "w") as lines:
        process = subprocess.Popen(
            command, stdout=lines, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            ended = "done" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it may have started
            process.wait()
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if ended != "done":
        print("\n".join(said[-40:]))
    ended += f": {said[-1][:200]}" if ended == "failed" and said else ""  # the error comes last
    rows = read_json(found, [])
    holds = ended == "done" and all(row["holds"] is not False for row in rows)
    return {"ended": ended, "seconds": round(time.perf_counter() - began, 1), "holds": holds, "rows": rows}


def install(wheels: Path, folder: Path) -> None:
    """Put all wheels of a folder into another, from where they can be imported.

    Raises:
        SystemExit: there are none, or they are for another Python.
    """
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"--wheels {wheels} holds no wheel. Fill it: pip download {NEEDED} -d {wheels}")
    # no dependencies: torch is there already
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, *files], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"--wheels {wheels}: {done.stderr.strip()[-500:]}")


def table(results: dict[str, Any]) -> str:
    """Markdown: how the parts ended, then what they found."""
    cells = [[n, p["ended"], p["seconds"], "yes" if p["holds"] else "**no**"] for n, p in results["parts"].items()]
    text = f"{results['name']}, torch {results['torch']}\n\n{markdown(['part', 'ended', 'seconds', 'holds'], cells)}"
    for name, part in results["parts"].items():
        lines = [
            [row["what"], shown(row["figure"]), shown(row["at_most"]),
             {None: "", True: "yes", False: "**no**"}[row["holds"]], row["note"]]
            for row in part["rows"]
        ]  # fmt: skip
        text += f"\n\n**{name}**\n\n" + markdown(["what", "figure", "at most", "holds", ""], lines)
    return text


def shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.3g}" if abs(figure) < 1000 else f"{figure:.0f}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "gpu_check")
    made.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    made.add_argument("--tiny", action="store_true", help="sizes that a CPU takes seconds for")
    made.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="which ones, in this order")
    made.add_argument("--limit", type=int, help="seconds for each part, instead of its own limit")
    made.add_argument("--wheels", type=Path, help="folder of wheels to install into the folder of the results")
    made.add_argument("--part", nargs=2, help=argparse.SUPPRESS)  # one part, in this process, and its file
    return made


def main() -> int:
    arguments = parser().parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch.cuda.is_available() is False: this machine has no GPU that torch can use.")
    if arguments.part:
        name, file = arguments.part
        function = getattr(importlib.import_module(PARTS[name].module), PARTS[name].function)
        function(arguments.device, TINY if arguments.tiny else Sizes(), Findings(Path(file)))
        return 0
    record_run(arguments.output)
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    results: dict[str, Any] = {"name": gpu, "torch": torch.__version__, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), f"{folder}/installed"]
        if arguments.wheels:
            install(arguments.wheels, Path(paths[-1]))
        for part in arguments.parts:
            results["parts"][part] = run(part, arguments, paths, Path(folder))
            write_json(arguments.output / "results.json", results)
            write_table(arguments.output / "table.md", table(results))
    return int(not all(part["holds"] for part in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
