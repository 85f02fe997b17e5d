"""Grades on disk, so that an interrupted run goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.intervals import Grades
from benchmarks.harness.results import read_json, write_json
from hf_efficient.representation.evaluation.questions import Scene


class Book:
    """What was measured of an evaluation set, by name, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path, self.books = path, read_json(path, {})

    def recall(self, name: str, measure: Callable[[], Any]) -> Any:
        """What is written under this name, measured if it is not in the file yet."""
        if name not in self.books:
            self.books[name] = measure()
            write_json(self.path, self.books)
        return self.books[name]

    def check(self, stored: int, asked: int) -> None:
        """Raise unless as many answers are stored as questions are asked."""
        if stored != asked:
            raise SystemExit(f"{self.path} was written for other scenes; remove it, or choose another --output.")


class GradeBook(Book):
    """Grades by name, kept as hexadecimal bits."""

    def __init__(self, path: Path, scenes: Sequence[Scene]) -> None:
        super().__init__(path)
        self.counts = [len(scene.questions) for scene in scenes]

    def forget(self, methods: Sequence[str]) -> None:
        """Drop the grades of rows of these methods, whose rule has changed: of names with "METHOD" as a word."""
        self.books = {name: bits for name, bits in self.books.items() if not set(methods) & set(name.split())}

    def __call__(self, name: str, measure: Callable[[], Grades]) -> Grades:
        """The grades of this name, measured if they are not in the file yet."""

        def bits() -> str:
            rights = "".join(str(int(right)) for row in measure() for right in row)
            return f"{int('1' + rights, 2):x}"

        stored = bin(int(self.recall(name, bits), 16))[3:]
        self.check(len(stored), sum(self.counts))
        rights = iter(stored)
        return [[next(rights) == "1" for _ in range(count)] for count in self.counts]
