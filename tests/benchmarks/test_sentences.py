"""Figures of sentences are written from result files, or listed as no measurements."""

import json
from pathlib import Path

import pytest

from benchmarks import sentences


def test_every_figure_of_a_sentence_is_written_from_a_result_file_or_has_a_reason() -> None:
    assert sentences.problems(json.loads(sentences.LIST.read_text())) == []


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only page there is."""
    monkeypatch.setattr(sentences, "ROOT", tmp_path)
    monkeypatch.setattr(sentences, "pages", lambda: [tmp_path / "page.md"])
    return tmp_path / "page.md"


@pytest.mark.parametrize(
    ("sentence", "left"),
    [
        ("It has 74.3 % ([table](results/table.md)).", ["74.3"]),
        ('It has [74.3](results/table.md "a > b") % of 12 %.', ["12"]),  # the first is written by make numbers
        ("It has .743 of it, −1.3 and +1.3 points.", [".743", "−1.3", "+1.3"]),
        ("`x=0.5`, by 2.14.0, arXiv 2306.12345, [2.5 so](v1.2/a.md).", ["2.5"]),
        ("It takes 12 ms, 4 times as long, and loses 3 points.", ["12", "4", "3"]),  # whole ones with a unit
        ("It has 5, 10 and 13 % of 3,000 steps with 4 layers, and 1,300 MB.", ["5", "10", "13", "1,300"]),
        ("Intervals are 95 %, with vLLM 0.32.0 and torch 2.14; pictures of 640 x 272 s.", []),
        ("At 90, 95 and 98 %, with 40 % wrong labels and 10 % of the tokens.", []),  # levels
        ("At 0.5 % of 12.5, 3 % of the tokens", ["0.5", "12.5"]),
        ("```python\n# at 0.5 %\nf(0.5)\n```\nIt has 7.5.", ["7.5"]),
        ("| a | 7.5 |\n", ["7.5"]),  # a table that nothing fills
    ],
)
def test_what_counts_as_a_figure_by_hand(page: Path, sentence: str, left: list[str]) -> None:
    page.write_text(sentence)
    assert [figure for figure, _, _ in sentences.by_hand(page)] == left


@pytest.mark.parametrize(
    ("listed", "complaints"),
    [
        ({"page.md": {"falls to 15.3 there": "paper"}}, []),
        ({}, ["neither from a result file nor listed: 15.3 in ... It falls to 15.3 there, by Ann."]),
        ({"page.md": {"falls to 15.4 there": "paper"}}, ["listed: 15.3", "not needed: 'falls to 15.4 there'"]),
        ({"page.md": {"by Ann": "paper"}}, ["listed: 15.3", "not needed: 'by Ann'"]),  # words without the figure
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
