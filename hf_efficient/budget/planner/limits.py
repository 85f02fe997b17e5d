"""What may be limited, how a limit is written, and which of them a cost breaks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from hf_efficient.budget.report import BudgetReport, readable
from hf_efficient.checks import check_choice
from hf_efficient.reading import is_number, shown

#: What may be limited -> its unit, and what it is. The names are those of the fields of a `BudgetReport`.
COSTS = {
    "prefill_seconds": ("s", "seconds of a forward"),
    "prefill_flops": ("FLOP", "operations of a forward"),
    "prefill_flops_nonzero": ("FLOP", "operations of a forward with weights that are not zero"),
    "cache_bytes": ("B", "key-value cache after it"),
    "file_bytes": ("B", "weights in a file"),
    "training_bytes": ("B", "weights, optimizer state and the peak of a training step"),
    "step_seconds": ("s", "seconds of a training step"),
}
OF_A_FORWARD = ("prefill_seconds", "prefill_flops", "prefill_flops_nonzero", "cache_bytes")
OF_TRAINING = ("training_bytes", "step_seconds")
_SIZES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "": 1.0}
_AMOUNT = re.compile(r"\s*(?P<number>\d+\.?\d*(?:e[+-]?\d+)?)\s*(?P<size>[kmgt]?)(?P<unit>%|b|flop|flops|s|)\s*", re.I)

Limits = Mapping[str, float | int | str]


class LimitError(ValueError):
    """A limit that no plan meets.

    Args:
        message: which limit, the best that can be reached, and what takes it.
        best: name of the limit -> best reachable value.
    """

    exit_code = 3  # of the command line

    def __init__(self, message: str, best: dict[str, float]) -> None:
        super().__init__(message)
        self.best = best


def amounts(limits: Limits, stock: Mapping[str, float]) -> dict[str, float]:
    """Limits as numbers.

    Args:
        limits: name -> a number, in seconds, operations or bytes; or a text: "50%" of what the model costs now, or a
            number with its unit: "40MB", "3 GFLOP", "200ms".
        stock: name -> what the model costs now.

    Raises:
        ValueError: a name is not known, an amount cannot be read or is not > 0, or there is none at all.
    """
    check_limits(limits, any(name in stock for name in OF_TRAINING))
    return {name: _amount(name, value, stock[name]) for name, value in limits.items()}


def check_limits(limits: Any, trained: bool) -> None:
    """Refuse what cannot be limited, before anything is measured.

    Args:
        limits: as of `amounts`.
        trained: whether training is priced.

    Raises:
        ValueError: see there.
    """
    if not isinstance(limits, Mapping) or not limits:
        raise ValueError(
            f"limit={shown(limits)} limits nothing; expected a dict of at least one of {', '.join(COSTS)}."
        )
    for name, value in limits.items():
        check_choice("limit", name, tuple(COSTS))
        if name in OF_TRAINING and not trained:
            raise ValueError(
                f"limit: {name} is of training; pass what is trained to find_plan: args= and train_batch=."
            )
        _amount(name, value, 1.0)


def _amount(name: str, value: Any, now: float) -> float:
    unit = COSTS[name][0]
    number: float | None = value if is_number(value) else None
    if isinstance(value, str) and (read := _AMOUNT.fullmatch(value)):
        said, size = read["unit"].lower(), read["size"].lower()
        number = float(read["number"])
        if said == "%":
            number = number / 100 * now if not size else None
        elif said in ("", unit.lower(), f"{unit.lower()}s"):
            number *= 1e-3 if (size, unit) == ("m", "s") else _SIZES[size]
        else:
            number = None
    if number == 0 and not now:
        raise ValueError(f"limit: {name} is 0 of this model, and so is {shown(value)} of it; there is nothing to save.")
    if number is None or not 0 < number < math.inf:
        example = {"s": "'200ms'", "B": "'40MB'", "FLOP": "'3GFLOP'"}[unit]
        raise ValueError(
            f"limit: {name}={shown(value)} cannot be read; expected a number > 0, or a text as {example} or '50%' (of "
            "what the model costs now)."
        )
    return float(number)


def costs_of(report: BudgetReport) -> dict[str, float]:
    """Name -> cost, of a measured model; those of training only where a step was measured."""
    found: dict[str, float] = {name: getattr(report.representation, name) for name in OF_A_FORWARD}
    found["file_bytes"] = report.parameters.file_bytes
    if (step := report.optimization) is not None:
        state = report.parameters.optimizer_bytes or 0
        found["training_bytes"] = report.parameters.memory_bytes + state + step.peak_bytes
        found["step_seconds"] = step.seconds
    return found


def broken(costs: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """The limits that these costs are above; costs that are not known break none."""
    return [name for name, most in limits.items() if costs.get(name, 0) > most]


def said(name: str, value: float) -> str:
    """A cost as a text: "12.3 MB"."""
    return readable(value, COSTS[name][0])
