"""Figures of the pages, written from result files: `make numbers` fills them in, `--check` says what differs.

A figure says itself where it comes from, and its form (decimals, sign, bold) stays as it is on the page:

    [86.2](benchmarks/results/equal_footing_photo/table.md "itg (default), with sizes > 32")

is a link to the file; its title names the row and the column. A table has the same for all of its cells, above it:

    <!-- numbers: benchmarks/results/sam_step/table.md > $row > $column
    rows: S2-SAM; ZO-SAM, m = 1; -
    columns: ViT-S; BERT-base
    -->

A place is, for a Markdown table, a heading where several tables have such rows, then row and column; for JSON the keys
on the way; an entry of a list is a number, or how its values begin (`itg 0.125` of `{"method": "itg", "budget": 0.125,
...}`). A row is named by how it begins; of columns of one name, `#2` is the second.
`=` says that names are those on the page, `-` leaves a row or a column alone, `+` joins places of which a cell holds
one figure each (or all of theirs, if it holds more), `less` takes the difference of two. `row > {a; b; c}` is the same
as `row > a + row > b + row > c`. A last part `%` gives a hundred times the figures, and `minus` the first with the
other sign.
"""

import argparse
import json
import re
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hf_efficient.files import write_text

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/**/*.md", "model_cards/*.md", "benchmarks/representation/*.md")
NUMBER = re.compile(r"(?<![\w.])[+\-−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:e-?\d+)?")
FIGURE = re.compile(r'\[([^\]\n]*)\]\(([^)\s]*results/[^)\s]+) "([^"\n]+)"\)')
TABLE = re.compile(r"^<!-- numbers: (.+?)\nrows: (.+?)\ncolumns: (.+?)\n-->\n((?:\|.*\n?)+)", re.MULTILINE)


def cells(line: str) -> list[str]:
    """Cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def plain(text: str) -> str:
    """A name without marks, in small letters."""
    return re.sub(r"[*`_\s]+", " ", text).strip().lower()


class Row(NamedTuple):
    """A line of a table: its cells, and what it is called by."""

    cells: list[str]
    first: str
    whole: str


@cache
def tables(path: Path) -> list[tuple[str, list[Row]]]:
    """(what stands above it and in its head, rows) of every table of a file; the head is a row too."""
    found: list[tuple[str, list[Row]]] = []
    above, inside = "", False
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            above, inside = plain(line.strip("#*")) or above, False
        elif not set(line) <= set("|-: "):
            row = Row(cells(line), plain(cells(line)[0]), plain(" ".join(cells(line))))
            if not inside:
                found.append((f"{above} | {row.whole}", []))
                inside = True
            found[-1][1].append(row)
    return found


@cache
def read(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def entry(several: list[Any], key: str) -> Any:
    """The entry of a list by its number, or by how its values begin.

    Raises:
        LookupError: none or several begin so.
    """
    if key.isdigit():
        return several[int(key)]
    begun = [one for one in several if f"{plain(' '.join(map(str, one.values())))} ".startswith(f"{plain(key)} ")]
    if len(begun) != 1:
        raise LookupError(f"{len(begun)} entries of {len(several)} begin with {key}")
    return begun[0]


def place(path: Path, parts: list[str]) -> str:
    """What stands at a place of a result file.

    Raises:
        LookupError: no or several cells answer to these names.
    """
    if path.suffix == ".json":
        content = read(path)
        for key in parts:
            content = entry(content, key) if isinstance(content, list) else content[key]
        return str(content)
    *heading, row, column = (plain(part) for part in parts)
    found = set()
    name, _, nth = column.partition("#")
    for above, (head, *body) in tables(path):
        if heading and heading[0] not in above:
            continue
        columns = [i for i, other in enumerate(head.cells) if not name or plain(other) == name]
        columns = columns[int(nth) - 1 : int(nth)] if nth else columns
        lines = [line for line in body if line.first == row] or [
            line for line in body if line.whole.startswith(row + " ")
        ]
        found |= {line.cells[i] for line in lines for i in columns}
    if len(found) != 1:
        raise LookupError(
            f"{path.parent.name}/{path.name}: {len(found)} cells are named {' > '.join(parts)}: {sorted(found)}"
        )
    return found.pop()


def figures_at(folder: Path, reference: str, count: int) -> list[Decimal]:
    """The figures at a place, or one each of several joined by `+`, all if `count` is more; files from `folder`."""
    places = reference.split(" + ")
    several = [figures(folder, one) for one in places[:count]]
    if count > len(places):
        return [figure for one in several for figure in one]
    return [one[0] for one in several]


def figures(folder: Path, reference: str) -> list[Decimal]:
    """The figures at one place, or the difference of the first ones at two (`less`)."""
    if " less " in reference:
        one, other = (figures(folder, part)[0] for part in reference.split(" less "))
        return [one - other]
    name, *parts = [part.strip() for part in reference.split(" > ")]
    path = (folder / name).resolve()
    last = parts[-1] if parts[-1] in ("%", "minus") else ""
    text = place(path, parts[:-1] if last else parts)
    values = [Decimal(n.replace("−", "-").replace(",", "")) for n in NUMBER.findall(text)]
    if not values:
        raise LookupError(f"no figure at {reference}, but {text!r}")
    if last == "%":
        return [100 * value for value in values]
    return [-values[0], *values[1:]] if last else values


def in_form(value: Decimal, form: str) -> str:
    """A value with the decimals, the sign and the way of writing of `form`."""
    if "e" in form:
        return f"{value:.{len(form.partition('e')[0].partition('.')[2])}e}".replace("e-0", "e-").replace("e+0", "e")
    rounded = value.quantize(Decimal(1).scaleb(-len(form.partition(".")[2])), ROUND_HALF_EVEN)
    text = f"{abs(rounded):,}" if "," in form else f"{abs(rounded):f}"
    if form.lstrip("+-−").startswith("."):
        text = text.removeprefix("0")
    sign = ("-" if form[0] == "-" else "−") if rounded.is_signed() else "+" if form[0] in "+-−" else ""
    return sign + text


def filled(text: str, folder: Path, reference: str) -> str:
    """A text with its figures replaced, in turn, by those at a reference.

    Raises:
        LookupError: there are more figures in the text.
    """
    count = len(NUMBER.findall(text))
    values = figures_at(folder, reference, count)
    if count > len(values):
        raise LookupError(f"{text!r} has more figures than {reference}: {', '.join(map(str, values))}")
    left = iter(values)
    return NUMBER.sub(lambda found: in_form(next(left), found[0]), text)


def table_filled(page: Path, source: str, rows: list[str], columns: list[str], table: str) -> Iterator[str]:
    """Lines of a page's table with the figures of its source."""
    head, rule, *body = table.splitlines()
    yield from (head, rule)
    rows = [cells(line)[0] for line in body] if rows == ["="] else rows
    columns = cells(head)[1:] if columns == ["="] else columns
    if len(body) != len(rows) or any(len(cells(line)) != len(columns) + 1 for line in body):
        raise LookupError(f"{page}: rows or columns named are not as many as the table has: {head}")
    for line, row in zip(body, rows, strict=True):
        label, *old = cells(line)
        new = [
            filled(cell, page.parent, at(source, row, column))
            if "-" not in (row, column) and NUMBER.search(cell)
            else cell
            for cell, column in zip(old, columns, strict=True)
        ]
        yield "| " + " | ".join([label, *new]) + " |"


def at(source: str, row: str, column: str) -> str:
    """The reference of a cell; of several names joined by `+` the first goes with the first, and so on."""
    rows, columns = row.split(" + "), column.split(" + ")
    several = max(len(rows), len(columns))
    places = [
        source.replace("$column", c).replace("$row", r).replace("$column", c)
        for r, c in zip(rows * (several // len(rows)), columns * (several // len(columns)), strict=True)
    ]
    return " + ".join(places)


def spread(reference: str) -> str:
    """A reference with `{a; b}` written out: one place for each name, joined by `+`."""
    places = []
    for one in reference.split(" + "):
        before, brace, rest = one.partition("{")
        names, _, after = rest.partition("}")
        places += [before + name.strip() + after for name in names.split(";")] if brace else [one]
    return " + ".join(places)


def page_filled(page: Path) -> str:
    """The text of a page with all figures as their sources have them."""

    def figure(found: re.Match[str]) -> str:
        text, name, reference = found.groups()
        places = re.sub(r"^|(?<= \+ )|(?<= less )", f"{name} > ", spread(reference))
        return f'[{filled(text, page.parent, places)}]({name} "{reference}")'

    def table(found: re.Match[str]) -> str:
        source, rows, columns, old = found.groups()
        lines = table_filled(page, source, split(rows), split(columns), old)
        return found[0].removesuffix(old) + "".join(f"{line}\n" for line in lines)

    return TABLE.sub(table, FIGURE.sub(figure, page.read_text(encoding="utf-8")))


def split(names: str) -> list[str]:
    """Names of rows or columns."""
    return [name.strip() for name in names.replace("\n", " ").split(";")]


def pages() -> list[Path]:
    """The pages whose figures are filled in."""
    return sorted(page for pattern in PAGES for page in ROOT.glob(pattern))


def main() -> None:
    """Fill in the pages, or say which differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numbers", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page differs")
    check = parser.parse_args().check
    differ = [page for page in pages() if page_filled(page) != page.read_text(encoding="utf-8")]
    for page in differ:
        print(page.relative_to(ROOT))
        if not check:
            write_text(page, page_filled(page))
    if check and differ:
        raise SystemExit("These pages differ from their result files: run `make numbers`.")


if __name__ == "__main__":
    main()
