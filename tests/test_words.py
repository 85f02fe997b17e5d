"""Words that no text of the package uses: coinages where the field has a term, and English in an unusual order."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What is not said -> what is said instead.
WORDS = {
    "living weight": "active weight",
    "dead weight": "inactive weight",
    "alive": "active",
    "manieth": "every Nth",
    "size_aware": "proportional_attention",
    "max_min": "divprune",
    "is no answer": "is not an answer",
    "is no power": "is not a power",
    "has not the": "does not have the",
    "is no folder": "is not a folder",
    "is no bundle": "is not a bundle",
    "is no whole": "is not a whole",
    "lives no more": "has ended",
    "inside of": "inside",
    "says of itself": "description",
    "colour": "color",
    "normalis": "normaliz",
    "recognis": "recogniz",
    "initialis": "initializ",
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string of a module, docstrings and parts of f-strings included; lines are joined."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())


ROOMS = sorted(path.name for path in (ROOT / "hf_efficient").iterdir() if path.is_dir() and any(path.rglob("*.py")))


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_texts_use_the_words_of_the_field(room: str) -> None:
    folder = ROOT / "hf_efficient" / room
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word!r}, write {better!r}"
        for path in sorted(folder.rglob("*.py") if room else folder.glob("*.py"))
        for line, text in texts(path)
        for word, better in WORDS.items()
        if word in text.replace("there is no ", "")
    ]
    assert not found, "\n".join(found)
