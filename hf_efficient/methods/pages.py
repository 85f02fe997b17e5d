"""What a reader sees of the table: the list of methods, one method's card, and the page docs/paper_index.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from .config_defaults import config_defaults
from .row import NEEDS, Kind, Method, Paper

_INTRODUCTION = """\
# Paper index

Which arguments are which paper's method. A token budget is an example; other values are those that paper or code \
names, as far as they are settings here. The page of each method says what was left out, changed or measured. \
`hf-efficient methods NAME` says the same of one method at the command line.

This page is written by `make pages` out of `hf_efficient/methods/`.
"""
LONGEST_TITLE = len("own settings")  # of the facts of a method
_IMPORTED = ("TokenPrunerConfig", "SAMArguments", "BiDSTConfig", "fit_video")


def listing(kinds: Iterable[Kind]) -> str:
    """All methods with a line each, under the name of what they save."""
    kinds = list(kinds)
    width = max(len(name) for kind in kinds for name in kind.names)
    parts = []
    for kind in kinds:
        rows = [f"  {method.name:{width}}  {method.line}" for method in kind.methods]
        parts.append("\n".join([f"{kind.budget} ({kind.choice}=...)", *rows]))
    return "\n\n".join([*parts, "hf-efficient methods NAME describes one method."])


def cards(kinds: Iterable[Kind], name: str) -> str:
    """What the table says of the method, or methods, with this name.

    Raises:
        ValueError: there is none.
    """
    kinds = list(kinds)
    found = [card(kind, method) for kind in kinds for method in kind.methods if method.name == name]
    if not found:
        near = get_close_matches(name, [known for kind in kinds for known in kind.names], 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name!r} is not a method.{meant} `hf-efficient methods` lists them all.")
    return "\n\n".join(found)


def facts(kind: Kind, method: Method) -> dict[str, str]:
    """Everything that the table says of one method, part by part; a part of which it says nothing is left out."""
    lines = {
        "chosen by": f'{kind.choice}="{method.name}", in {_code(kind, method, {})}' if kind.config else kind.call,
        "paper": _paper(kind, method),
        "as published": _code(kind, method, method.published) if method.published else "",
        "own settings": ", ".join(f"{name} ({default!r})" for name, default in _read(kind, method).items()),
        "left open": ", ".join(f"{name} is {value!r}" for name, value in method.defaults.items()),
        "needs": "; ".join(NEEDS[need] for need in method.needs),
        "runs": kind.runs,
        "code": method.where.partition(":")[0],
        "page": f"docs/{method.page or kind.page}",
    }
    return {title: text for title, text in lines.items() if text}


def card(kind: Kind, method: Method) -> str:
    """The facts of one method, a line each."""
    lines = facts(kind, method)
    width = LONGEST_TITLE + 2
    rows = [
        textwrap.fill(f"{title + ':':{width}}{text}", 110, subsequent_indent=" " * (width + 2), initial_indent="  ")
        for title, text in lines.items()
    ]
    return "\n".join([f"{method.name} ({kind.budget}): {method.line}", *rows])


def paper_index(kinds: Iterable[Kind]) -> str:
    """The page that maps each paper to its arguments, as Markdown."""
    parts = [_INTRODUCTION]
    for kind in kinds:
        papers = _by_paper(kind)
        if papers:
            parts.append(f"## {kind.budget.capitalize()}\n")
        for paper, uses in sorted(papers.items(), key=lambda item: (item[0].year, item[0].title)):
            pages = dict.fromkeys(page for _, _, page in uses)
            more = ", ".join(f"[{page}]({page})" for page in pages)
            parts.append(f"### {paper.title}\n\n{_cited(paper, markdown=True)}. More: {more}\n\n{_block(uses)}")
    return "\n".join(parts)


def _by_paper(kind: Kind) -> dict[Paper, list[tuple[str, str, str]]]:
    """Paper -> (line, code, page) of each of its methods."""
    found: dict[Paper, list[tuple[str, str, str]]] = {}
    for paper, line, code, page in _uses(kind):
        found.setdefault(paper, []).append((line, code, page))
    return found


def _uses(kind: Kind) -> Iterator[tuple[Paper, str, str, str]]:
    for method in kind.methods:
        if method.paper is not None:
            yield method.paper, method.line, _code(kind, method, method.published), method.page or kind.page
    for setting in kind.settings:
        yield setting.paper, setting.line, kind.call.format(_arguments(setting.published)), setting.page


def _block(uses: list[tuple[str, str, str]]) -> str:
    codes = "\n".join(f"# {line}\n{code}" for line, code, _ in uses)
    names = ", ".join(name for name in _IMPORTED if name in codes)
    return f"```python\nfrom hf_efficient import {names}\n\n{codes}\n```\n"


def _code(kind: Kind, method: Method, settings: Mapping[str, Any]) -> str:
    return kind.call.format(_arguments({kind.choice: method.name, **settings}))


def _arguments(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_quoted(value)}" for name, value in settings.items())


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _paper(kind: Kind, method: Method) -> str:
    if method.paper is not None:
        return f"{method.paper.title}, {_cited(method.paper)}"
    return "none: of this package, or a plain baseline" if kind.config else ""


def _cited(paper: Paper, markdown: bool = False) -> str:
    published = f"{paper.venue} {paper.year}".strip()
    if not paper.arxiv:
        return published
    return f"{published}, [arXiv {paper.arxiv}]({paper.link})" if markdown else f"{published}, arXiv {paper.arxiv}"


def _read(kind: Kind, method: Method) -> dict[str, Any]:
    """The settings that a method reads and not all others do, with their defaults."""
    defaults = config_defaults(kind.config) if kind.config else {}
    return {name: defaults[name] for name in method.reads}
