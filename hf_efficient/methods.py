"""The one table of methods: what there is, a line each, and which settings each method reads. Imports nothing heavy.

A configuration calls `check_settings(self, KIND)` when it is made: a setting that its method does not read, and that is
not at its default, is an error, since it would change nothing in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, NamedTuple


class Method(NamedTuple):
    """One row.

    Args:
        name: as the configuration has it.
        line: what it does.
        paper: number on arXiv, or None.
        reads: the settings that this method reads and not every method of its kind does.
        source: authors, place and year, where there is no number.
    """

    name: str
    line: str
    paper: str | None
    reads: tuple[str, ...] = ()
    source: str = ""


class Only(NamedTuple):
    """A setting that is read only where others have certain values, whatever the method.

    Args:
        setting: its name.
        read: called with the configuration; whether the setting is read there.
        where: the same in words, after "it is read only with".
    """

    setting: str
    read: Callable[[Any], bool]
    where: str


@dataclass(frozen=True)
class Kind:
    """The methods of one configuration.

    Args:
        choice: the field that names the method.
        methods: the rows.
        only: settings whose reading depends on other settings.
    """

    choice: str
    methods: tuple[Method, ...]
    only: tuple[Only, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all methods, in the order of the table."""
        return tuple(method.name for method in self.methods)

    def row(self, name: str) -> Method:
        """The method of this name."""
        return next(method for method in self.methods if method.name == name)

    def readers(self, setting: str) -> tuple[str, ...]:
        """The methods that read a setting: those that declare it, or all if none does."""
        return tuple(method.name for method in self.methods if setting in method.reads) or self.names


_PROBES = ("num_queries", "delta", "probe_fraction", "probe_dropout", "guided", "direction_seed")

#: `SAMArguments`
OPTIMIZATION = Kind(
    "method",
    (
        Method("sam", "along the batch's own gradient, two passes", "2010.01412", ("batch_norm_pass",)),
        Method("asam", "SAM in units of each weight's size", "2102.11600", ("batch_norm_pass",)),
        Method("s2sam", "along the last step's gradient, one pass", None, source="Ji et al., NeurIPS 2024"),
        Method("zosam", "along a direction estimated from losses alone", "2603.13115", _PROBES),
        Method("looksam", "SAM every k steps, reused in between", "2203.02714",
               ("reuse_interval", "reuse_weight", "batch_norm_pass")),
        Method("msam", "along the optimizer's momentum, one pass", "2401.12033"),
    ),
    (Only("delta", lambda c: not c.guided, "guided=False: guided directions are asked at the distance of the step"),),
)  # fmt: skip


def check_settings(config: Any, kind: Kind) -> None:
    """Refuse settings that will not be read.

    Args:
        config: a dataclass. A value equal to its field's default counts as not set.
        kind: its row of methods. Where `kind.choice` is None no method has been chosen, and nothing is checked.

    Raises:
        ValueError: a setting is not at its default, and its method (or `kind.only`) does not read it. The message names
            value, the methods that read it, and what to do.
    """
    chosen = getattr(config, kind.choice)
    if chosen is None:
        return
    ignored = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value == _default(field):
            continue
        readers = kind.readers(field.name)
        if chosen not in readers:
            others = ", ".join(map(repr, readers))
            ignored.append(f"{field.name}={value!r} is not read by {kind.choice}={chosen!r}, only by {others}")
            continue
        ignored += [f"{field.name}={value!r} is read only with {only.where}"
                    for only in kind.only if only.setting == field.name and not only.read(config)]  # fmt: skip
    if ignored:
        raise ValueError(f"{'; '.join(ignored)}. Leave it out, or choose what reads it.")


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default
