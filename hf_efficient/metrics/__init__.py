"""What the package is judged by, with the interface of `evaluate`: `load(name).compute(predictions=, references=)`.

Each folder is a module of `evaluate`, so that `evaluate.load(path(name))` works offline; `spaces` makes a Space of its
kind out of each.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_efficient.checks import check_choice

NAMES = ("token_retention", "exact_match_by_family", "sparsity", "video_quality", "forgetting", "loss_rise")


def path(name: str) -> str:
    """The folder that `evaluate.load` takes.

    Raises:
        ValueError: there is no such metric.
    """
    check_choice("name", name, NAMES)
    return str(Path(__file__).parent / name)


def load(name: str) -> Any:
    """A metric with `compute(predictions=, references=, ...)`: a module of `evaluate` where that is installed.

    Raises:
        ValueError: there is no such metric.
    """
    folder = path(name)
    if find_spec("evaluate") is not None:
        return import_module("evaluate").load(folder)
    return Plain(name)


class Plain:
    """A metric without `evaluate`.

    Args:
        name: of `NAMES`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = getattr(import_module(f"{__name__}.functions"), name)

    @property
    def description(self) -> str:
        """What it is, what it takes and gives."""
        return inspect.cleandoc(self._function.__doc__)

    def compute(self, *, predictions: Any, references: Any, **more: Any) -> dict[str, float]:
        """The metric; arguments as of the function of its name in `functions`."""
        found: dict[str, float] = self._function(predictions, references, **more)
        return found
