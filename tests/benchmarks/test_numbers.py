"""Figures on the pages are those of the result files, and result files say how they were made."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from benchmarks import card_texts, cards, numbers
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks/results"


@pytest.mark.parametrize("page", numbers.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_figures_are_those_of_the_results(page: Path) -> None:
    assert numbers.page_filled(page) == page.read_text(encoding="utf-8"), "run `make numbers`"


@pytest.mark.parametrize("card", cards.cards(), ids=lambda path: str(path.relative_to(ROOT)))
def test_cards_are_those_of_the_results(card: Path) -> None:
    assert cards.cards()[card] == card.read_text(encoding="utf-8"), "run `make numbers`"
    written: Any = ModelCard.load(card)
    assert written.data.eval_results
    for result in written.data.eval_results:
        shown = [value for text, *_ in numbers.FIGURE.findall(written.text) for value in numbers.NUMBER.findall(text)]
        if card.parent.name == "model_cards" and card.stem in card_texts.CARDS:  # its table shows the same
            assert any(
                float(value.replace("−", "-")) == pytest.approx(result.metric_value, abs=0.06) for value in shown
            )


def test_most_tables_of_results_are_filled() -> None:
    texts = [page.read_text(encoding="utf-8") for page in numbers.pages()]
    assert sum(len(numbers.TABLE.findall(text)) for text in texts) > 35
    assert not any("<!-- numbers" in numbers.TABLE.sub("", text) for text in texts), "a marker that is not understood"


def test_the_readme_has_no_figure_without_a_source() -> None:
    table = (ROOT / "README.md").read_text().partition("| | result | command |")[2].partition("\n\n")[0]
    results = [row.split("|")[2] for row in numbers.FIGURE.sub("", table).splitlines() if row.count("|") == 4]
    assert len(results) > 10
    assert not [row for row in results if re.search(r"\d\d\.\d|±|[+−]\d", row)]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/table.md").write_text(
        "**one**\n\n| method | seeds | gain | gain |\n|---|---|---|---|\n| a | 5 | **+1.25 ± 0.34** | 1 |\n"
        "| ab | 5 | 9 | 2 |\n"
        "\n**two**\n\n| method | seeds | gain |\n|---|---|---|\n| a | 5 | -3 |\n"
    )
    rows = '[{"method": "a", "right": 0.1234, "time": 1234.5}, {"method": "a b", "right": 0.5}]'
    (tmp_path / "results/rows.json").write_text(f'{{"rows": {rows}}}')
    return tmp_path / "page.md"


def filled(page: Path, text: str) -> str:
    page.write_text(text)
    return numbers.page_filled(page)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("+9.9 ± 9.9", "+1.2 ± 0.3", "table.md > one > a > gain#1"),
        ("9.9", "−3.0", "table.md > two > a > gain"),
        ("−9 %", "−3 %", "table.md > two > a 5 > gain"),
        ("9", "3", "table.md > two > a > gain > minus"),
        (".999", ".123", "rows.json > rows > 0 > right"),
        ("9.9", "0.5", "rows.json > rows > a b > right"),
        ("9.9 of 9,999", "12.3 of 1,234", "rows.json > rows > 0 > right > % + rows > 0 > time"),
        ("+9", "+4", "table.md > one > a > gain#2 less two > a > gain"),
        ("9, 9 and 9.9", "1, 2 and 5.0", "table.md > one > {a; ab} > gain#2 + one > a > seeds"),
        ("9.9 (9.9 to 9)", "1.2 (0.3 to 2)", "table.md > one > a > gain#1 + one > ab > gain#2"),
    ],
)
def test_a_figure_keeps_its_form(page: Path, old: str, new: str, place: str) -> None:
    name, _, rest = place.partition(" > ")
    assert filled(page, f'[{old}](results/{name} "{rest}")') == f'[{new}](results/{name} "{rest}")'


def test_a_table_is_filled(page: Path) -> None:
    marker = "<!-- numbers: results/table.md > one > $row > $column\nrows: a; -; ab\ncolumns: gain#1; gain#2\n-->\n"
    table = "| | x | y |\n|---|---|---|\n| A | **+9.99** | 9 |\n| hand | 7 | 7 |\n| B | 0 |  |\n"
    assert filled(page, marker + table) == marker + table.replace("+9.99", "+1.25").replace(
        "| A | **+1.25** | 9", "| A | **+1.25** | 1"
    ).replace("| B | 0", "| B | 9")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("table.md > gone > a > gain", "0 cells"),
        ("table.md > a > gain", "cells are named a > gain"),
        ("table.md > two > a > method", "no figure"),
        ("rows.json > rows > a > right", "2 entries of 2 begin with a"),
        ("rows.json > rows > c > right", "0 entries of 2 begin with c"),
    ],
)
def test_a_place_that_is_not_one_is_said(page: Path, place: str, said: str) -> None:
    name, _, rest = place.partition(" > ")
    with pytest.raises(LookupError, match=said):
        filled(page, f'[1](results/{name} "{rest}")')


def test_more_figures_than_the_source_has_are_said(page: Path) -> None:
    with pytest.raises(LookupError, match="more figures"):
        filled(page, '[1 ± 2](results/table.md "two > a > gain")')


def test_form() -> None:
    assert numbers.in_form(Decimal("0.0005"), "8e-3") == "5e-4"
    assert numbers.in_form(Decimal("-0.04"), "+0.1") == "−0.0"


def results() -> Iterator[Path]:
    """Folders that hold results."""
    for folder in sorted(path for path in RESULTS.rglob("*") if path.is_dir()):
        if any(path.suffix in (".json", ".md", ".txt") for path in folder.iterdir()):
            yield folder


def test_results_say_how_they_were_made() -> None:
    bad: dict[str, Any] = {}
    for folder in results():
        runs = json.loads((folder / "log.json").read_text()) if (folder / "log.json").is_file() else [{}]
        for run in runs:
            known = ["command", "commit", "date"] + ([] if "entered" in run else ["machine", "threads"])
            lacking = [name for name in known if not run.get(name)]
            if (
                lacking
                or not re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"])
                or "python -m benchmarks." not in run["command"]
            ):
                bad[str(folder.relative_to(ROOT))] = lacking
    assert not bad
