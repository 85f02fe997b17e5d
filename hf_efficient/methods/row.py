"""What a row of the table says of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple

from hf_efficient.checks import check_choice

#: What a method may need, and the words for it.
NEEDS = {
    "importance": "an importance of each token: the vision model's attention, or what the tokens themselves tell",
    "first pass": "a forward and a backward pass over the batch of the step, before its own",
    "losses": "losses on the batch of the step, without a backward pass",
    "momentum": "an optimizer that keeps a momentum",
    "gradient": "gradients of the targeted layers' weights",
    "scores": "a score of every patch: the difficulty of its enlargement",
}


@dataclass(frozen=True)
class Paper:
    """Where a method was published.

    Args:
        title: of the paper.
        year: of publication.
        arxiv: its number on arXiv, as "2010.01412", or "".
        venue: conference or journal, or "".
    """

    title: str
    year: int
    arxiv: str = ""
    venue: str = ""

    @property
    def link(self) -> str:
        """The paper's page on the Hub, or "" where it has no number on arXiv."""
        return f"https://huggingface.co/papers/{self.arxiv}" if self.arxiv else ""

    @property
    def cited(self) -> str:
        """Venue and year, as "ICLR 2021"."""
        return f"{self.venue or 'arXiv'} {self.year}"


class Only(NamedTuple):
    """A setting that is read only where others have certain values.

    Args:
        setting: its name.
        read: called with the configuration; whether the setting is read there.
        where: the same in words, after "it is read only with".
    """

    setting: str
    read: Callable[[Any], bool]
    where: str


@dataclass(frozen=True)
class Method:
    """One row: everything that is said of a method outside of its own file.

    Args:
        name: as the configuration has it.
        line: what it does, in one line.
        where: "module:name" of what implements it, imported when it is first used.
        paper: where it was published; None if it is this package's own, or a baseline.
        reads: the settings that this method reads and not every method of its kind does.
        needs: keys of `NEEDS`.
        defaults: setting -> what this method takes for it where it is left open ("auto" or None).
        only: conditions on its settings.
        published: setting -> value in the paper, for the paper index.
        page: of `docs/`, if it is not its kind's.
    """

    name: str
    line: str
    where: str
    paper: Paper | None = None
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[Only, ...] = ()
    published: Mapping[str, Any] = field(default_factory=dict)
    page: str = ""

    @cached_property
    def implementation(self) -> Any:
        """What `where` names."""
        module, _, name = self.where.partition(":")
        return getattr(import_module(module), name)

    @property
    def source(self) -> str:
        """Where it comes from, as Markdown: a link to the paper, or its title, or that it is of this package."""
        if self.paper is None:
            return "this package"
        return f"[paper]({self.paper.link})" if self.paper.link else f"{self.paper.title}, {self.paper.cited}"


class Setting(NamedTuple):
    """A paper whose method is a setting of others, for the paper index.

    Args:
        paper: where it was published.
        line: what it does.
        published: setting -> value that is the paper's method.
        page: of `docs/`.
    """

    paper: Paper
    line: str
    published: Mapping[str, Any]
    page: str


@dataclass(eq=False)
class Kind:
    """The methods that one setting chooses among.

    Args:
        budget: what they save, for headings.
        choice: the setting that names the method.
        call: how one writes it down, with `{}` for the arguments.
        runs: where they run.
        page: of `docs/`, where its methods are described.
        methods: the rows. A program may add its own: `REPRESENTATION.methods += (row,)`.
        only: conditions on settings, whatever the method.
        settings: papers whose method is a setting.
        config: "module:class" of the configuration that has `choice` as a field, or "" where there is none.
        formerly: setting -> its default in older versions, which wrote it into every file.
    """

    budget: str
    choice: str
    call: str
    runs: str
    page: str
    methods: tuple[Method, ...]
    only: tuple[Only, ...] = ()
    settings: tuple[Setting, ...] = ()
    config: str = ""
    formerly: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all methods, in the order of the table."""
        return tuple(method.name for method in self.methods)

    @property
    def listed(self) -> str:
        """The names for a help text, and where more is said of them."""
        return f"{', '.join(self.names)}; `hf-efficient methods` says what each does"

    def row(self, name: object) -> Method:
        """The method of this name.

        Raises:
            ValueError: there is none.
        """
        check_choice(self.choice, name, self.names)
        return next(method for method in self.methods if method.name == name)

    def readers(self, setting: str) -> tuple[str, ...]:
        """The methods that read a setting: those that declare it, or all if none does."""
        return tuple(method.name for method in self.methods if setting in method.reads) or self.names
