"""Figures in sentences of the pages against the result files of their section: `python -m benchmarks.sentences`.

Tables and marked figures are written from result files (`benchmarks/numbers.py`). What a sentence says was put there by
hand: every decimal figure of it, and every whole one with a unit (%, times, ms, dB, MB, points ...), must stand in a
table that its section links to. So when a table is made anew and a sentence is forgotten, the check names it.

`sentences.json` lists what is no measurement of ours: page -> words of the page with the figure in them -> one of
`REASONS`. Nothing else may be in it. A measurement that no result file has is not listed but measured, or said without
a figure. A setting is better written as code, `0.3`, than listed. Refused are entries without such a reason, and those
that the page does not need any more.
"""

import argparse
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from benchmarks.numbers import FIGURE, ROOT, TABLE, pages

LIST = Path(__file__).parent / "sentences.json"
REASONS = {
    "paper": "reported by a paper or another project, which is named beside it",
    "setting": "chosen, not measured: a default, a limit, a goal, a level or a size at which something is measured",
    "version": "of a library, a model or a standard",
    "count": "follows by counting or arithmetic from what the sentence names",
    "test": "a bound that a test of this repository asserts",
}
UNIT = (
    r"%|times\b|points?\b|dB\b|m?s\b|seconds?\b|minutes?\b|hours?\b|[kKMG]i?B\b|bytes\b|kbit\b|of 255\b|"
    r"requests?\b|tokens a second\b"
)
DECIMAL = r"\d*\.\d+(?![\w.]*\w)"
#: Whole figures before a unit, alone or in a row of several: "5, 10 and 13 %".
WHOLE = rf"\d+(?:,\d{{3}})*(?![\w.]|,\d)(?=(?:(?:,| and| to| or|, and) [+\-−]?\d[\d.,]*)* (?:{UNIT}))"
NUMBER = re.compile(rf"(?<![\w.\-/#])(?<!\d,)(?<! x )[+\-−]?(?:{DECIMAL}|{WHOLE})")
LINK = re.compile(r"\]\(([^)\s]*results/[^)\s]+)")
#: Not figures: code, metadata, links' targets, numbers of papers and of versions.
OTHER = re.compile(
    r"`[^`\n]*`|\]\([^)]*\)|arXiv \d+\.\d+|\(\d{4}\.\d{4,5}\)|\d+(?:\.\d+){2,}|<!--.*?-->|"
    r"\b(?:vLLM|transformers|torch(?:ao)?|PEFT|Python) (?:>= )?\d+(?:\.\d+)+|95 % intervals?|[Ii]ntervals are 95 %",
    re.DOTALL,
)
BLOCK = re.compile(r"\A---\n.*?^---$|^```.*?^```", re.DOTALL | re.MULTILINE)
AROUND = 50


def table_of(linked: Path) -> Path:
    """The table that a link means: the file itself, or the one beside a plot or a file of runs."""
    return linked if linked.suffix in (".md", ".txt") else (linked if linked.is_dir() else linked.parent) / "table.md"


@cache
def amounts(table: Path) -> list[float]:
    """All figures of a table of results, without their signs, in order."""
    text = table.read_text(encoding="utf-8").replace(",", "") if table.is_file() else ""
    return sorted({float(n) for n in re.findall(r"\d*\.?\d+", text)})


def stands_in(figure: str, table: Path) -> bool:
    """Whether a table has the figure, or one that is rounded to it."""
    digits = figure.lstrip("+-−").replace(",", "")
    half = 0.501 * 10.0 ** -len(digits.partition(".")[2])
    values = amounts(table)
    nearest = bisect_left(values, float(digits) - half)
    return nearest < len(values) and values[nearest] <= float(digits) + half


def sections(page: Path) -> Iterator[tuple[str, set[Path]]]:
    """(text without what is no sentence, tables of results that it links to) below every heading."""
    text = BLOCK.sub("", FIGURE.sub("", TABLE.sub("", page.read_text(encoding="utf-8"))))
    for section in re.split(r"^(?=#)|^(?=\*\*)", text, flags=re.MULTILINE):
        linked = {(page.parent / link).resolve() for link in LINK.findall(section)}
        yield " ".join(OTHER.sub("", section).split()), {table_of(path) for path in linked}


def by_hand(page: Path) -> Iterator[tuple[str, str, int]]:
    """(figure, text of the section, place in it) of what no table of the section has."""
    for text, tables in sections(page):
        for found in NUMBER.finditer(text):
            if not any(stands_in(found[0], table) for table in tables):
                yield found[0], text, found.start()


def excuses(words: str, figure: str, text: str, at: int) -> bool:
    """Whether these words stand around the figure at this place of the text."""
    first = max(0, at + len(figure) - len(words))
    return words in text[first : at + len(words)]


def problems(listed: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is wrong with the sentences and their list, a line each; nothing if all is well."""
    lines = [
        f"{LIST.name}, {page}: {words!r} has the reason {reason!r}, not one of {', '.join(REASONS)}"
        for page, entries in listed.items()
        for words, reason in entries.items()
        if reason not in REASONS
    ]
    names = {page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else str(page): page for page in pages()}
    lines += [f"{LIST.name}: there is no page {name}" for name in listed if name not in names]
    for name, page in names.items():
        entries, used = listed.get(name, {}), set()
        for figure, text, at in by_hand(page):
            excused = {words for words in entries if excuses(words, figure, text, at)}
            if not excused:
                around = text[max(0, at - AROUND) : at + len(figure) + AROUND]
                lines.append(f"{name}: no table of its section has {figure}: ... {around} ...")
            used |= excused
        lines += [f"{LIST.name}, {name}: not needed: {words!r}" for words in entries if words not in used]
    return lines


def parser() -> argparse.ArgumentParser:
    """The options."""
    return argparse.ArgumentParser(prog="python -m benchmarks.sentences", description=__doc__.splitlines()[0])


def main() -> None:
    parser().parse_args()
    if found := problems(json.loads(LIST.read_text(encoding="utf-8"))):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
