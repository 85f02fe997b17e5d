"""Grades on disk, so that an interrupted run goes on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.intervals import Grades
from benchmarks.harness.results import read_json, write_json
from examples.tiny_vlm.evaluation import digest_of
from hf_efficient.representation.evaluation.questions import Scene

REMEDY = "Remove that file, or choose another --output."


class Book:
    """What was measured, by name, in a JSON file that also says by digests what it was measured with.

    Args:
        path: the file.
        made_with: digests of what answers depend on and names do not tell, such as models; see `identity`.

    Raises:
        SystemExit: the file was written with something else of one of these names, or does not say with what.
    """

    def __init__(self, path: Path, made_with: Mapping[str, str]) -> None:
        found = read_json(path, {"made with": {}, "stored": {}})
        if "made with" not in found:
            raise SystemExit(f"{path} does not say what models and questions its answers are of. {REMEDY}")
        known: dict[str, str] = found["made with"]
        for name, digest in made_with.items():
            if known.get(name, digest) != digest:
                raise SystemExit(
                    f"{path} holds answers that were measured with another {name}: its digest is {known[name]} there, "
                    f"now {digest}. {REMEDY}"
                )
        self.path, self.made_with, self.books = path, {**known, **made_with}, dict[str, Any](found["stored"])

    def recall(self, name: str, measure: Callable[[], Any]) -> Any:
        """What is written under this name, measured if it is not in the file yet."""
        if name not in self.books:
            self.books[name] = measure()
            write_json(self.path, {"made with": self.made_with, "stored": self.books})
        return self.books[name]


def with_scenes(scenes: Sequence[Scene], made_with: Mapping[str, str]) -> dict[str, str]:
    """What a book of answers about scenes compares."""
    return {"set of scenes": digest_of(scenes), **made_with}


class GradeBook(Book):
    """Grades by name, kept as hexadecimal bits.

    Args:
        path: the file.
        scenes: what is asked.
        made_with: as of `Book`, without the scenes.
    """

    def __init__(self, path: Path, scenes: Sequence[Scene], made_with: Mapping[str, str]) -> None:
        super().__init__(path, with_scenes(scenes, made_with))
        self.counts = [len(scene.questions) for scene in scenes]

    def forget(self, methods: Sequence[str]) -> None:
        """Drop the grades of rows of these methods, whose rule has changed: of names with "METHOD" as a word."""
        words = {name: set(name.replace(",", " ").split()) for name in self.books}
        self.books = {name: bits for name, bits in self.books.items() if not words[name] & set(methods)}

    def __call__(self, name: str, measure: Callable[[], Grades]) -> Grades:
        """The grades of this name, measured if they are not in the file yet."""

        def bits() -> str:
            rights = "".join(str(int(right)) for row in measure() for right in row)
            return f"{int('1' + rights, 2):x}"

        rights = iter(bin(int(self.recall(name, bits), 16))[3:])
        return [[next(rights) == "1" for _ in range(count)] for count in self.counts]
