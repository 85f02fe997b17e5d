"""Figures in sentences of the pages against the result files of their section: `python -m benchmarks.sentences`.

Tables and marked figures are written from result files (`benchmarks/numbers.py`). What a sentence says was put there by
hand. Every decimal figure of a sentence must stand in a table that its section links to, or in `sentences.json`, the
list of those that do not: figures of papers, of older runs, sums and differences, and such as no file holds. So when a
table is made anew and a sentence is forgotten, the check names it. `--accept` writes the list, to be read before it is
committed.
"""

import argparse
import json
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from benchmarks.numbers import FIGURE, ROOT, TABLE, pages
from hf_efficient.files import write_text

LIST = Path(__file__).parent / "sentences.json"
DECIMAL = re.compile(r"(?<![\w.\-/#])[+\-−]?\d*\.\d+(?![\w.]*\w)")
LINK = re.compile(r"\]\(([^)\s]*results/[^)\s]+)")
#: Not figures: code, blocks of code, metadata, links' targets, numbers of papers and of versions.
OTHER = re.compile(
    r"\A---\n.*?^---$|^```.*?^```|`[^`\n]*`|\]\([^)]*\)|arXiv \d+\.\d+|\(\d{4}\.\d{4,5}\)|\d+\.\d+\.\d+|<!--.*?-->",
    re.DOTALL | re.MULTILINE,
)


@cache
def amounts(folder: Path) -> list[float]:
    """All figures of the tables in a folder of results, without their signs, in order."""
    found: set[float] = set()
    for path in folder.rglob("*"):
        if path.suffix in (".md", ".txt"):
            found |= {float(n) for n in re.findall(r"\d*\.?\d+", path.read_text(encoding="utf-8").replace(",", ""))}
    return sorted(found)


def stands_in(figure: str, folder: Path) -> bool:
    """Whether a table of the folder has the figure, or one that is rounded to it."""
    digits = figure.lstrip("+-−")
    half = 0.501 * 10.0 ** -len(digits.partition(".")[2])
    values = amounts(folder)
    nearest = bisect_left(values, float(digits) - half)
    return nearest < len(values) and values[nearest] <= float(digits) + half


def sections(page: Path) -> Iterator[tuple[str, set[Path]]]:
    """(text without what is no sentence, folders of results that it links to) below every heading."""
    text = FIGURE.sub("", TABLE.sub("", page.read_text(encoding="utf-8")))
    for section in re.split(r"^(?=#)|^(?=\*\*)", text, flags=re.MULTILINE):
        linked = {(page.parent / link).resolve() for link in LINK.findall(section)}
        yield OTHER.sub("", section), {path if path.is_dir() else path.parent for path in linked}


def by_hand(page: Path) -> list[str]:
    """Figures in sentences of a page that no table of their section has."""
    return [
        figure
        for text, folders in sections(page)
        for figure in DECIMAL.findall(text)
        if not any(stands_in(figure, folder) for folder in folders if folder.is_dir())
    ]


def found() -> dict[str, list[str]]:
    """Page -> its figures by hand."""
    every = {page.relative_to(ROOT).as_posix(): by_hand(page) for page in pages()}
    return {page: figures for page, figures in every.items() if figures}


def new(known: dict[str, list[str]]) -> dict[str, list[str]]:
    """Page -> figures by hand that are not in the list, each as often as it is missing there."""
    missing: dict[str, list[str]] = defaultdict(list)
    for page, figures in found().items():
        left = list(known.get(page, []))
        for figure in figures:
            left.remove(figure) if figure in left else missing[page].append(figure)
    return dict(missing)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.sentences", description=__doc__.splitlines()[0])
    made.add_argument("--accept", action="store_true", help="write the list of figures that no table has")
    return made


def main() -> None:
    if parser().parse_args().accept:
        write_text(LIST, json.dumps(found(), indent=1, ensure_ascii=False) + "\n")
    for page, figures in new(json.loads(LIST.read_text(encoding="utf-8"))).items():
        print(f"{page}: no table of their section has {', '.join(figures)}")


if __name__ == "__main__":
    main()
