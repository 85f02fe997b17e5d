"""What fields of `TokenPrunerConfig` may hold. Every message begins with the field and its value."""

from __future__ import annotations

import argparse
import math
from fractions import Fraction
from typing import Any

from hf_efficient.methods import REPRESENTATION
from hf_efficient.reading import shown


class Budget:
    """`int | float` for argument parsers, which call one type on the text: "64" is a count, "1.0" a share."""

    def __new__(cls, text: str) -> int | float:  # type: ignore[misc]
        try:
            return int(text)
        except ValueError:
            return float(text)


class Difference:
    """`float` for argument parsers, which call one type on the text: a difference of pixel values is often "4/255"."""

    def __new__(cls, text: str) -> float:  # type: ignore[misc]
        try:
            return float(Fraction(text)) if "/" in text else float(text)
        except (ValueError, ZeroDivisionError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a fraction such as 4/255") from error


def check_generator(generator: object, method: str) -> None:
    """Raise unless the generator has weights, and the method takes them."""
    from .generator import TokenGenerator

    if not isinstance(generator, TokenGenerator):
        raise ValueError(
            f"generator={shown(generator)} has no weights; expected a TokenGenerator or None. A saved one is loaded by "
            "TokenPrunerConfig.from_pretrained(folder)."
        )
    refined = REPRESENTATION.readers("generator")
    if method not in refined:
        names = " or ".join(map(repr, refined))
        raise ValueError(f"generator refines the tokens of method={names}, not of {method!r}. Set generator=None.")


def check_budget(name: str, value: object) -> None:
    """Raise unless the value is a count >= 1 or a share in (0, 1]."""
    advice = "expected an int >= 1 (tokens per image, tile or frame) or a float in (0, 1] (share of them)"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}={shown(value)} is a {type(value).__name__}; {advice}.")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{name}={shown(value)} keeps nothing; {advice}.")
    if isinstance(value, float) and not 0 < value <= 1:
        fix = f" Write {name}={int(value)} to keep that many tokens." if 1 < value < 1e9 and value.is_integer() else ""
        raise ValueError(f"{name}={shown(value)} is not a share; {advice}.{fix}")


def check_layers(name: str, value: Any) -> None:
    """Raise unless the value is a list of distinct ints >= 1."""
    if (
        not isinstance(value, list)
        or not all(type(i) is int and i >= 1 for i in value)
        or len(set(value)) != len(value)
    ):
        raise ValueError(f"{name}={shown(value)} is not a list of layers; expected distinct ints >= 1, such as [2].")


def kept_of(n: int, budget: int | float) -> int:
    """Tokens that a budget keeps of `n`; raises where there is none."""
    if n < 1:
        raise ValueError(f"A unit of {n} tokens cannot be pruned; expected at least 1.")
    return min(n, budget) if isinstance(budget, int) else max(1, min(n, math.floor(budget * n + 0.5)))
