"""The published rules of methods that take one token after the other, written down plainly for one small unit.

A rule is made of tokens (N, D) and importance (N,); called with what is taken and a token, it says what that is worth.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.representation.objective import Objective
from tests.representation.units import cosines

Rule = Callable[[list[int], int], float]


def scaled(values: Tensor) -> Tensor:
    return ((values - values.min()) / (values.max() - values.min())).double()


def id_pruner(x: Tensor, p: Tensor) -> Rule:
    objective = Objective(x, p, 12, weight=0.0, kind="cosine")
    return lambda taken, j: objective([*taken, j])


def top_importance(x: Tensor, p: Tensor) -> Rule:
    return lambda taken, j: float(p[j])


def divprune(x: Tensor, p: Tensor) -> Rule:
    d = 1 - cosines(x)
    return lambda taken, j: float(d[j, taken or [i for i in range(len(x)) if i != j]].min())


def cen_prune(x: Tensor, p: Tensor) -> Rule:
    worth = scaled(-(cosines(x).sum(1) - 1) / (len(x) - 1))
    d = 1 - cosines(x - x.mean(0))
    return lambda taken, j: float(worth[j] * d[j, taken or [i for i in range(len(x)) if i != j]].min())


def cdpruner(x: Tensor, p: Tensor) -> Rule:
    r = scaled(p) + 1e-6
    kernel = r[:, None] * cosines(x) * r
    return lambda s, j: float(torch.logdet(kernel[[*s, j]][:, [*s, j]] + 1e-12 * torch.eye(len(s) + 1)))


def idpruner_mmr(x: Tensor, p: Tensor) -> Rule:
    c, imp = cosines(x), scaled(p)
    return lambda s, j: float(0.5 * imp[j] - 0.5 * c[j, s].max()) if s else float(imp[j])


def id_selection(x: Tensor, p: Tensor) -> Rule:
    weight = torch.exp(-20 * (1 - cosines(x)) ** 2)

    def worth(taken: list[int], j: int) -> float:
        score = scaled(p)
        for s in taken:
            score = score - weight[s] * score[s]
        return float(score[j])

    return worth


def scope(x: Tensor, p: Tensor) -> Rule:
    c = cosines(x)

    def gain(taken: list[int], j: int) -> float:
        covered = c[:, taken].amax(1).clamp_min(0) if taken else torch.zeros(len(x))
        return float(p[j] * (c[:, j] - covered).clamp_min(0).sum())

    return gain


def spare(x: Tensor, p: Tensor) -> Rule:
    def residual(taken: list[int], j: int) -> float:
        if not taken:
            return float(x[j].double().norm())
        basis = x[taken].double().T
        return float((x[j].double() - basis @ torch.linalg.lstsq(basis, x[j].double()).solution).norm())

    return residual


RULES: dict[str, Callable[[Tensor, Tensor], Rule]] = {
    rule.__name__: rule
    for rule in (
        id_pruner,
        top_importance,
        divprune,
        cen_prune,
        cdpruner,
        idpruner_mmr,
        id_selection,
        scope,
        spare,
    )
}


def greedy(k: int, n: int, value: Rule, allowed: Callable[[list[int], int], bool] = lambda taken, j: True) -> list[int]:
    """Plain greedy of value(taken, j) among the tokens that are allowed after what is taken."""
    taken: list[int] = []
    for _ in range(k):
        free = [j for j in range(n) if j not in taken and allowed(taken, j)]
        taken.append(max(free, key=lambda j: value(taken, j)))
    return taken
