"""Which tokens to keep, or what to make of them. One short file per method. A method that selects has

    select(features: (B, N, D) fp32, importance: (B, N) fp32, k, config, *, groups=None, valid=None) -> (B, k) long

which returns the tokens in the order taken, so that the first j of k are what the method takes for j. A method that
generates has `generate`, with the same arguments, and returns a `Mixture`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import id_pruner, itg, max_min, random, top_importance, uniform
from .mixture import Mixture

SELECTORS: dict[str, Callable[..., Tensor]] = {
    "id_pruner": id_pruner.select,  # importance and coverage in one submodular objective
    "random": random.select,  # the same fixed draw for every picture
    "uniform": uniform.select,  # an even grid
    "top_importance": top_importance.select,  # the k most important
    "max_min": max_min.select,  # farthest point on 1 - cosine (DivPrune)
}
GENERATORS: dict[str, Callable[..., Mixture]] = {
    "itg": itg.generate,  # importance-weighted k-means seeded by ID-Pruner
}
METHODS: dict[str, Callable[..., Tensor | Mixture]] = {**SELECTORS, **GENERATORS}
