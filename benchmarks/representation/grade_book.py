"""Grades on disk, so that an interrupted run goes on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.intervals import Grades
from benchmarks.harness.results import read_json
from hf_efficient.files import write_text
from hf_efficient.representation.evaluation.questions import Scene


class GradeBook:
    """Grades by name, kept in a file as hexadecimal bits."""

    def __init__(self, path: Path, scenes: Sequence[Scene]) -> None:
        self.path, self.counts = path, [len(scene.questions) for scene in scenes]
        self.books: dict[str, str] = read_json(path, {})

    def forget(self, methods: Sequence[str]) -> None:
        """Drop the grades of rows of these methods, whose rule has changed: of names with "METHOD" as a word."""
        self.books = {name: bits for name, bits in self.books.items() if not set(methods) & set(name.split())}

    def __call__(self, name: str, measure: Any) -> Grades:
        """The grades of this name, measured if they are not in the file yet."""
        if name not in self.books:
            bits = "".join(str(int(right)) for row in measure() for right in row)
            self.books[name] = f"{int('1' + bits, 2):x}"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self.books, indent=0) + "\n")
        stored = bin(int(self.books[name], 16))[3:]
        if len(stored) != sum(self.counts):
            raise SystemExit(f"{self.path} was written for other scenes; remove it, or choose another --output.")
        rights = iter(stored)
        return [[next(rights) == "1" for _ in range(count)] for count in self.counts]
