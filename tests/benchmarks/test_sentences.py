"""Figures in sentences stand in the tables of their sections, or in the list of those that do not."""

import json
from pathlib import Path

import pytest

from benchmarks import sentences


def test_no_sentence_was_left_behind() -> None:
    assert sentences.new(json.loads(sentences.LIST.read_text())) == {}, "write it anew, or see `benchmarks.sentences`"


def test_the_list_is_the_smaller_part() -> None:
    texts = [text for page in sentences.pages() for text, _ in sentences.sections(page)]
    every = sum(len(sentences.DECIMAL.findall(text)) for text in texts)
    assert sum(map(len, json.loads(sentences.LIST.read_text()).values())) < every / 2


@pytest.mark.parametrize(
    ("sentence", "left"),
    [
        ("It has 74.3 % ([table](results/table.md)).", []),
        ("It has 74.2 % ([table](results/table.md)).", ["74.2"]),  # the table was made anew
        ("It has .743 of it and +1.3 points ([table](results/table.md)).", []),  # rounded
        ("It loses −1.3 points, `x=0.5`, by 2.14.0, arXiv 2306.12345 ([table](results/table.md)).", []),
        ("It has 74.3 %.", ["74.3"]),
        ("It has 74.3 %.\n\n# Next\n\n[table](results/table.md)", ["74.3"]),  # another section
        ('It has [74.3](results/table.md "a > b") %.', []),  # written by make numbers
    ],
)
def test_figures_are_sought_in_the_tables_of_their_section(tmp_path: Path, sentence: str, left: list[str]) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/table.md").write_text("| a | b |\n|---|---|\n| x | 74.3 ± 0.2 |\n| y | 0.7431, -1.27 |\n")
    page = tmp_path / "page.md"
    page.write_text(sentence)
    sentences.amounts.cache_clear()
    assert sentences.by_hand(page) == left
