"""What a part of the GPU check finds: rows of a table, in a file that is written anew after each."""

import math
from pathlib import Path
from typing import Any

from benchmarks.harness.results import write_json


class Findings:
    """Rows {what, figure, at_most, holds}.

    Args:
        path: of the JSON file, which is there from the start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        write_json(path, self.rows)

    def add(self, what: str, figure: float | None, at_most: float | None = None, note: str = "") -> None:
        """Store a figure; with `at_most` it must not be greater. No figure: the note says why there is none."""
        holds = None if at_most is None else figure is not None and math.isfinite(figure) and figure <= at_most
        self.rows.append({"what": what, "figure": figure, "at_most": at_most, "holds": holds, "note": note})
        write_json(self.path, self.rows)
        print(f"{what}: {figure} {note}{' DOES NOT HOLD' if holds is False else ''}", flush=True)
