"""What the STDO benchmarks share: results that survive an interruption, and what they were measured on."""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import torch

from hf_efficient.files import write_text

RESULTS = Path(__file__).parents[1] / "results"
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


class Results:
    """Rows by key in a JSON file that is written anew after each one, so that a run can be stopped and resumed.

    Args:
        path: the file.
        arguments: options of the command line.
        names: those of them that all rows of a file share.

    Raises:
        SystemExit: the file holds rows of other settings.
    """

    def __init__(self, path: Path, arguments: argparse.Namespace, names: tuple[str, ...]) -> None:
        self.path = path
        self.settings = {name: getattr(arguments, name) for name in names}
        known = json.loads(path.read_text()) if path.exists() else {"settings": self.settings, "rows": {}}
        if known["settings"] != self.settings:
            other = {n: v for n, v in known["settings"].items() if v != self.settings.get(n)}
            raise SystemExit(f"{path} holds rows of other settings, {other}: name another folder by --output.")
        self.rows: dict[str, dict[str, Any]] = known["rows"]

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.rows[key] = row
        versions = {"python": platform.python_version(), "torch": torch.__version__, "av": av.__version__}
        content = {
            "settings": self.settings,
            "versions": versions,
            "threads": torch.get_num_threads(),
            "rows": self.rows,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"
