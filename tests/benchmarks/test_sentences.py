"""Figures in sentences stand in the tables of their sections, or in the list of those that are no measurements."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import sentences


def test_every_figure_of_a_sentence_has_a_table_or_a_reason() -> None:
    assert sentences.problems(json.loads(sentences.LIST.read_text())) == []


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only page there is, beside a folder of results."""
    (tmp_path / "results").mkdir()
    table = "| a | b |\n|---|---|\n| x | 74.3 ± 0.2 |\n| y | 0.7431, -1.27 |\n| z | 1,209 MB |\n"
    (tmp_path / "results/table.md").write_text(table)
    monkeypatch.setattr(sentences, "ROOT", tmp_path)
    monkeypatch.setattr(sentences, "pages", lambda: [tmp_path / "page.md"])
    sentences.amounts.cache_clear()
    yield tmp_path / "page.md"
    sentences.amounts.cache_clear()


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
        ("It takes 12 ms, 4 times as long, and loses 3 points.", ["12", "4", "3"]),  # whole ones with a unit
        ("It has 5, 10 and 13 % of 3,000 steps with 4 layers.", ["5", "10", "13"]),
        ("It takes 1,209 MB, or 1,300 MB ([table](results/table.md)).", ["1,300"]),
        ("Intervals are 95 %, with vLLM 0.32 and torch 2.14; pictures of 640 x 272 s.", []),
        ("```python\n# at 0.5 %\nf(0.5)\n```\nIt has 7.5.", ["7.5"]),  # a comment is no heading
    ],
)
def test_figures_are_sought_in_the_tables_of_their_section(page: Path, sentence: str, left: list[str]) -> None:
    page.write_text(sentence)
    assert [figure for figure, _, _ in sentences.by_hand(page)] == left


@pytest.mark.parametrize(
    ("listed", "complaints"),
    [
        ({"page.md": {"falls to 15.3 there": "paper"}}, []),
        ({}, ["no table of its section has 15.3: ... It falls to 15.3 there, by Ann."]),
        ({"page.md": {"falls to 15.4 there": "paper"}}, ["has 15.3", "not needed: 'falls to 15.4 there'"]),
        ({"page.md": {"by Ann": "paper"}}, ["has 15.3", "not needed: 'by Ann'"]),  # words without the figure
        ({"page.md": {"falls to 15.3 there": ""}}, ["has the reason '', not one of paper, setting"]),
        ({"page.md": {"falls to 15.3 there": "measured once"}}, ["has the reason 'measured once'"]),
        ({"page.md": {"to 15.3": "paper"}, "gone.md": {"2.5": "paper"}}, ["there is no page gone.md"]),
    ],
)
def test_the_list_has_a_reason_for_each_figure_and_nothing_else(
    page: Path, listed: dict[str, dict[str, str]], complaints: list[str]
) -> None:
    page.write_text("It falls to 15.3 there, by Ann.")
    found = sentences.problems(listed)
    assert len(found) == len(complaints)
    assert all(any(part in line for line in found) for part in complaints)
