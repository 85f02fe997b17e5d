"""The objective of ID-Pruner written down once more, slowly and in float64: the truth the fast code is held to."""

from itertools import combinations

import torch
from torch import Tensor

from hf_efficient.representation.config import TokenPrunerConfig


def kernel(x: Tensor, kind: str = "rbf") -> Tensor:
    """k_ij of tokens (N, D), pair by pair."""
    x = x.double()
    if kind == "rbf":
        distance = ((x[:, None] - x[None]) ** 2).sum(-1)
        return torch.exp(-2 * distance / distance.mean())
    y = x - x.mean(0)
    return (1 + torch.nn.functional.cosine_similarity(y[:, None], y[None], dim=-1)) / 2


def unit(seed: int, n: int, width: int = 6) -> tuple[Tensor, Tensor]:
    """Tokens (1, n, width) in loose clusters, as images have them, and their importance (1, n)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(2, n // 4), width, generator=generator)
    member = torch.randint(0, len(centres), (n,), generator=generator)
    x = centres[member] + 0.5 * torch.randn(n, width, generator=generator)
    return x[None], torch.rand(1, n, generator=generator) ** 2


class Objective:
    """F(S) = l sum_S p / sum_TopK p + (1 - l) sum_i pi_i max_{j in S} k_ij of one unit."""

    def __init__(
        self, x: Tensor, p: Tensor, k: int, weight: float = 0.1, mix: float = 0.5, kind: str = "rbf", power: float = 1
    ) -> None:
        p = p.double()
        self.n, self.k, self.weight = len(x), k, weight
        self.similarity = kernel(x, kind)
        self.pi = mix * p**power / (p**power).sum() + (1 - mix) / len(x)
        self.share = p / p.topk(k).values.sum()

    def __call__(self, chosen: list[int]) -> float:
        if not chosen:
            return 0.0
        covered = self.similarity[:, chosen].amax(1)
        return float(self.weight * self.share[chosen].sum() + (1 - self.weight) * (self.pi * covered).sum())

    def best(self, allowed: list[tuple[int, ...]] | None = None) -> float:
        """The optimum over all sets of k tokens, or over `allowed`."""
        sets = torch.tensor(allowed or list(combinations(range(self.n), self.k)))
        covered = self.similarity[:, sets].amax(-1)  # (N, sets)
        return float((self.weight * self.share[sets].sum(-1) + (1 - self.weight) * (self.pi @ covered)).max())

    def values(self, chosen: list[int]) -> list[float]:
        """F after adding each token to `chosen`; -1 for those in it."""
        return [self([*chosen, j]) if j not in chosen else -1.0 for j in range(self.n)]

    def greedy(self) -> list[int]:
        """Plain greedy, one token after the other."""
        chosen: list[int] = []
        while len(chosen) < self.k:
            values = self.values(chosen)
            chosen.append(values.index(max(values)))
        return chosen


def objective_of(x: Tensor, p: Tensor, k: int, config: TokenPrunerConfig) -> Objective:
    """What ID-Pruner maximises for the first unit of x (B, N, D) and p (B, N)."""
    mix, power = config.coverage_weights_of(k)
    return Objective(x[0], p[0], k, config.importance_weight, mix, config.kernel, power)
