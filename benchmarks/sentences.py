"""Figures that sentences of the pages hold by hand: `python -m benchmarks.sentences` names those that it must not.

Tables and marked figures are written from result files (`benchmarks/numbers.py`). Every other decimal figure of a
sentence, and every whole one with a unit (%, times, ms, dB, MB, points ...), must be in `sentences.json`, the list of
what is no measurement of ours: page -> words of the page with the figure in them -> one of `REASONS`. Nothing else may
be in it. So a measurement is marked where it stands, or said without a figure where no result file has it. A setting
is better written as code, `0.3`, than listed; the levels at which something is measured ("at 90 and 95 %", "40 % wrong
labels") need neither. Refused are entries without such a reason, and those that the page does not need any more.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
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
BLOCK = re.compile(r"\A---\n.*?^---$|^```.*?^```|<!--.*?-->", re.DOTALL | re.MULTILINE)
WHOLE_SHARES = r"(?<![\w.])\d+(?:, \d+)*(?:,? (?:and|or|to) \d+)? %"
SHARED = r"of (?:the|its) (?:operations|file|tokens|weights|labels)|zeros|sparse|(?:static )?sparsity|wrong labels"
#: Neither code nor links' targets, numbers of papers, of versions, nor levels at which something is measured.
OTHER = re.compile(
    r"`[^`\n]*`|\]\([^)]*\)|arXiv \d+\.\d+|\(\d{4}\.\d{4,5}\)|\d+(?:\.\d+){2,}|"
    r"\b(?:vLLM|transformers|torch(?:ao)?|PEFT|Python) (?:>= )?\d+(?:\.\d+)+|"
    rf"95 % intervals?|[Ii]ntervals are 95 %|\b[Aa]t {WHOLE_SHARES}|{WHOLE_SHARES}(?= (?:{SHARED})\b)"
)
AROUND = 50


def sections(page: Path) -> Iterator[str]:
    """The text below every heading, without marked figures and all that is no figure of a sentence."""
    text = BLOCK.sub("", FIGURE.sub("", TABLE.sub("", page.read_text(encoding="utf-8"))))
    for section in re.split(r"^(?=#)|^(?=\*\*)", text, flags=re.MULTILINE):
        yield OTHER.sub("", " ".join(section.split()))


def by_hand(page: Path) -> Iterator[tuple[str, str, int]]:
    """(figure, text of its section, place in it) of all that are not written from result files."""
    for text in sections(page):
        for found in NUMBER.finditer(text):
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
    names = {page.relative_to(ROOT).as_posix(): page for page in pages()}
    lines += [f"{LIST.name}: there is no page {name}" for name in listed if name not in names]
    for name, page in names.items():
        entries, used = listed.get(name, {}), set()
        for figure, text, at in by_hand(page):
            excused = {words for words in entries if excuses(words, figure, text, at)}
            if not excused:
                around = text[max(0, at - AROUND) : at + len(figure) + AROUND]
                lines.append(f"{name}: neither from a result file nor listed: {figure} in ... {around} ...")
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
