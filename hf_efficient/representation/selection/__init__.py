"""Which tokens to keep, or what to make of them: one short file and one row of `hf_efficient.methods` per method.

A method that selects has

    select(features: (B, N, D) fp32, importance: (B, N) fp32, k, config, *, groups=None, valid=None) -> (B, k) long

which returns the tokens in the order taken, so that the first j of k are what the method takes for j; or `Covered`,
where it knows the coverage of its choice as well. A method that generates has `generate`, with the same arguments, and
returns a `Mixture`. A method whose row reads the setting `kernel` is also called with `kernel`, the `TokenKernel` of
the features. Importance is >= 0, 1 <= k <= N; `groups` (B, N) long says which tile or frame a token is of, `valid`
(B, N) bool which tokens may be taken. The docstrings of the methods say what each adds to this.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from hf_efficient.methods import REPRESENTATION


class Covered(NamedTuple):
    """A choice whose coverage is known: tokens (B, k) long in the order taken, coverage (B,) float32 or None."""

    order: Tensor
    coverage: Tensor | None


def generates(method: str) -> bool:
    """Whether a method makes new tokens; the others select."""
    return REPRESENTATION.row(method).where.endswith(":generate")
