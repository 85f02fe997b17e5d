"""What a search has found: the plan, what it costs, and what else was tried."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_efficient.budget.plan.efficiency_plan import EfficiencyPlan
from hf_efficient.budget.report import table
from hf_efficient.checks import check_choice
from hf_efficient.files import written_whole

from .front_plot import figure_of
from .limits import COSTS, broken, said


@dataclass(frozen=True)
class Candidate:
    """One plan that was tried.

    Args:
        name: for tables.
        plan: all of it.
        quality: what the metric said.
        predicted: name of a cost -> value, before it was measured.
        measured: the same, measured; those of training of the plan that is taken alone.
    """

    name: str
    plan: EfficiencyPlan
    quality: float
    predicted: Mapping[str, float]
    measured: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        quality = self.quality if math.isfinite(self.quality) else None  # JSON knows no infinity
        own = {"name": self.name, "plan": self.plan.to_dict(), "quality": quality}
        return {**own, "predicted": dict(self.predicted), "measured": dict(self.measured)}


@dataclass(frozen=True)
class FoundPlan:
    """What `find_plan` returns.

    Args:
        best: the plan of the highest quality among those that keep all limits.
        limits: name of a cost -> the most it may be.
        stock: the model as it was.
        tried: all plans that were tried, also those for the front alone.
    """

    best: Candidate
    limits: Mapping[str, float]
    stock: Candidate
    tried: Sequence[Candidate] = field(repr=False)

    @property
    def plan(self) -> EfficiencyPlan:
        """The plan to use."""
        return self.best.plan

    @property
    def quality(self) -> float:
        """What the metric says of it, on the data it was chosen on."""
        return self.best.quality

    @property
    def predicted(self) -> Mapping[str, float]:
        """What it was thought to cost."""
        return self.best.predicted

    @property
    def measured(self) -> Mapping[str, float]:
        """What it costs."""
        return self.best.measured

    def front(self, cost: str | None = None) -> list[Candidate]:
        """The plans, the stock model among them, than which none that was tried is both better and cheaper.

        Args:
            cost: name of the cost; None: the first one that is limited.

        Raises:
            ValueError: it is no cost that was measured.
        """
        name = self._cost(cost)
        known = [one for one in (self.stock, *self.tried) if name in one.measured]
        ordered = sorted(known, key=lambda one: (one.measured[name], -one.quality))
        front: list[Candidate] = []
        for one in ordered:
            if not front or one.quality > front[-1].quality:
                front.append(one)
        return front

    def _cost(self, cost: str | None) -> str:
        if cost is not None:
            check_choice("cost", cost, tuple(self.measured))
        return next(iter(self.limits)) if cost is None else cost

    def _kept(self, one: Candidate) -> str:
        """Whether a plan keeps the limits, as far as it was measured."""
        if broken(one.measured, self.limits):
            return "no"
        return "yes" if all(name in one.measured for name in self.limits) else "not priced"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "limits": dict(self.limits),
            "best": self.best.to_dict(),
            "stock": self.stock.to_dict(),
            "tried": [one.to_dict() for one in self.tried],
        }

    def to_markdown(self) -> str:
        """Two tables: what the plan costs beside limits, predictions and the stock model; and all that was tried."""
        names = [n for n in COSTS if n in self.measured]
        rows = [
            [
                COSTS[n][1], said(n, self.stock.measured[n]) if n in self.stock.measured else "",
                said(n, self.limits[n]) if n in self.limits else "",
                said(n, self.predicted[n]) if n in self.predicted else "", said(n, self.measured[n]),
            ]
            for n in names
        ]  # fmt: skip
        rows.append(["quality", f"{self.stock.quality:.4g}", "", "", f"{self.quality:.4g}"])
        first = table([f"**{self.best.name}**", "stock", "limit", "predicted", "measured"], rows)
        limited = [n for n in COSTS if n in self.limits]
        on_front = {one.name for one in self.front()}
        others = [
            [
                one.name, f"{one.quality:.4g}",
                *(said(n, one.measured[n]) if n in one.measured else "" for n in limited),
                self._kept(one), "yes" if one.name in on_front else "",
            ]
            for one in sorted((self.stock, *self.tried), key=lambda one: -one.quality)
        ]  # fmt: skip
        head = ["tried", "quality", *(COSTS[n][1] for n in limited), "in the limits", "on the front"]
        return f"{first}\n\n{table(head, others)}"

    def plot(self, path: str | os.PathLike[str], cost: str | None = None) -> None:
        """Draw quality over a cost: all that was tried with names, the front as a line, the limit, the plan.

        Args:
            path: of the PNG file, written whole or not at all.
            cost: name of the cost; None: the first one that is limited.

        Raises:
            ImportError: matplotlib is absent; the message says what to install.
            ValueError: it is no cost that was measured.
        """
        figure = figure_of(self, self._cost(cost))
        with written_whole(os.fspath(path)) as draft:
            figure.savefig(draft, dpi=130, format="png")
