"""The lever on visual tokens: how the cost of a forward depends on how many are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hf_efficient.budget.measure import measure
from hf_efficient.budget.memory import device_of
from hf_efficient.budget.report import BudgetReport
from hf_efficient.budget.timing import seconds_of
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.attach import token_pruner
from hf_efficient.wrapped import pruner_below

from .limits import OF_A_FORWARD, broken, costs_of

SHARES = (1 / 16, 3 / 8, 3 / 4)  # of the tokens, at which a forward is counted


class TokenCosts:
    """Predicted costs of a forward under one selection method.

    A decoder's operations are a polynomial of the second degree in the length of the prompt, and its cache one of the
    first; so three counted forwards tell all others. Seconds go through the same three by least squares, on a line.

    Args:
        model: stock.
        processor: its processor.
        inputs: makes the inputs of a forward by the processor.
        config: the method; its budget is not read.
        most: tokens of the largest picture, tile or frame.
        repeats: forwards timed.
        pace: asked beside each measurement, a factor for its seconds: other programs make a machine slower for a while.
    """

    def __init__(
        self, model: Any, processor: Any, inputs: Callable[[], Any], config: TokenPrunerConfig, most: int, repeats: int,
        pace: Callable[[], float] = lambda: 1.0,
    ) -> None:  # fmt: skip
        self.model, self.processor, self.inputs, self.config, self.repeats = model, processor, inputs, config, repeats
        self.pace = pace
        self.most = most
        budgets = sorted({max(1, round(share * most)) for share in SHARES})
        reports = [self.measured(model, budget) for budget in budgets]
        self.kept = np.array([report.representation.kept_tokens for report in reports], dtype=float)
        self.units = self.kept[0] / budgets[0]  # pictures, tiles and frames of the batch
        names = sorted({module.name for report in reports for module in report.modules})
        own = [{m.name: (m.flops, m.flops_nonzero) for m in report.modules} for report in reports]
        self.names = names
        self.flops = self._through([[counts.get(n, (0, 0))[0] for n in names] for counts in own])
        self.useful = self._through([[counts.get(n, (0, 0))[1] for n in names] for counts in own])
        self.rest = self._through([[r.representation.prefill_flops - sum(m.flops for m in r.modules)] for r in reports])
        self.cache = self._through([[report.representation.cache_bytes] for report in reports])
        seconds = [report.representation.prefill_seconds for report in reports]
        line = np.polyfit(self.kept, seconds, 1) if len(reports) > 1 else (0.0, seconds[0])
        self.slope, self.start = float(line[0]), float(line[1])

    def _through(self, values: Any) -> Any:
        """Coefficients of the polynomials through the counted forwards: (degree + 1, columns), highest first."""
        return np.polyfit(self.kept, np.array(values, dtype=float), len(self.kept) - 1)

    def measured(self, model: Any, budget: int) -> BudgetReport:
        """A report of a model with so many tokens, whatever its weights."""
        with token_pruner(model, self.processor, self.with_budget(budget)):
            report = measure(model, self.inputs(), repeats=self.repeats)
        now = report.representation
        return replace(report, representation=replace(now, prefill_seconds=now.prefill_seconds * self.pace()))

    def with_budget(self, budget: int) -> TokenPrunerConfig:
        """The method's config with a number of tokens."""
        return TokenPrunerConfig.from_dict({**self.config.to_dict(), "budget": budget})

    def at(self, budget: int, density: Mapping[str, float], slower: float = 1.0) -> dict[str, float]:
        """Predicted costs with so many tokens kept.

        Args:
            budget: of each picture, tile or frame.
            density: name of a pruned layer -> share of its weight that stays; other layers are as in the stock model.
            slower: seconds of a forward with these weights, as a multiple of those of the stock ones.
        """
        kept = budget * self.units
        flops, useful = np.polyval(self.flops, kept), np.polyval(self.useful, kept)
        shares = np.array([density.get(name, np.nan) for name in self.names])
        nonzero = np.where(np.isnan(shares), useful, flops * shares)
        rest = float(np.polyval(self.rest, kept)[0])
        return {
            "prefill_seconds": float(self.start + self.slope * kept) * slower,
            "prefill_flops": float(flops.sum()) + rest,
            "prefill_flops_nonzero": float(nonzero.sum()) + rest,
            "cache_bytes": float(np.polyval(self.cache, kept)[0]),
        }

    def most_within(self, limits: Mapping[str, float], density: Mapping[str, float], slower: float = 1.0) -> int:
        """The most tokens whose predicted costs keep the limits; 0 where one token is too many. By bisection."""
        fits = lambda budget: not broken(self.at(budget, density, slower), limits)  # noqa: E731
        low, high = 0, self.most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


def pace_of(model: Any, inputs: Mapping[str, Any], seconds: float, repeats: int) -> float:
    """Seconds that a forward of the stock model took at first, as a multiple of those that it takes now.

    Args:
        model: stock.
        inputs: of the forward.
        seconds: at first.
        repeats: forwards timed.
    """
    with torch.no_grad():
        now = seconds_of(lambda: model(**inputs), device_of(model), repeats)
    return seconds / now if now else 1.0


def largest_unit(model: Any, processor: Any, inputs: Callable[[], Any], config: TokenPrunerConfig) -> int:
    """Tokens of the largest picture, tile or frame among the inputs; 0 where there is none."""
    with token_pruner(model, processor, config), torch.no_grad():
        model(**inputs())
        return max((unit.num_tokens for unit in pruner_below(model).last), default=0)


def stock_costs(report: BudgetReport, density: Mapping[str, float], slower: float = 1.0) -> dict[str, float]:
    """Predicted costs of a forward with all tokens, whose layers are pruned.

    Args:
        report: of the stock model.
        density: as of `TokenCosts.at`; so is the next one.
        slower: see there.
    """
    found = {name: costs_of(report)[name] for name in OF_A_FORWARD}
    zeroed = sum(m.flops_nonzero - m.flops * density[m.name] for m in report.modules if m.name in density)
    found["prefill_flops_nonzero"] -= zeroed
    found["prefill_seconds"] *= slower
    return found
