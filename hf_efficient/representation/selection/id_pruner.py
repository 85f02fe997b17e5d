"""ID-Pruner: importance and diversity-aware coverage, measured apart and joined in one submodular objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.maths.exchange import exchange
from hf_efficient.representation.maths.greedy import greedy_dense, greedy_lazy
from hf_efficient.representation.maths.importance import coverage_weights, shares
from hf_efficient.representation.maths.kernel import TokenKernel
from hf_efficient.representation.maths.quota import Quota

from . import Covered

Rows = Callable[[Tensor], Tensor]
Gains = Callable[[Tensor | None], Tensor]
MAX_STORED = 2**26  # numbers of similarity matrices held at once: 256 MiB, one unit of 8192 tokens or 202 of 576


def select(
    features: Tensor,
    importance: Tensor,
    k: int,
    config: TokenPrunerConfig,
    *,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """The tokens of `choose`, (B, k) long, in the order taken."""
    return choose(features, importance, k, config, groups=groups, valid=valid).order


def choose(
    features: Tensor,
    importance: Tensor,
    k: int,
    config: TokenPrunerConfig,
    *,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
    kernel: TokenKernel | None = None,
) -> Covered:
    """Greedy maximiser of F(S) = l * sum_S p / sum_TopK p + (1 - l) * sum_i pi_i max_{j in S} k_ij under |S| = k.

    F is monotone and submodular, so greedy reaches at least 1 - 1/e of the optimum (1/2 with quotas), and exchanges
    after it only raise F.

    Args:
        features: (B, N, D) float32.
        importance: (B, N) float32, >= 0: p.
        k: tokens to take, 1 <= k <= N.
        config: gives l (`importance_weight`), a and gamma of pi (`coverage_mix`, `coverage_power`), `kernel`, rho
            (`min_group_share`) and `exchange_passes`.
        groups: (B, N) long or None: tile or frame of every token, for the quotas.
        valid: (B, N) bool or None; tokens marked False are neither taken nor covered.
        kernel: of the features, if it is made already.

    Returns:
        Tokens (B, k) in the order taken, equal gains by rising index, and their coverage. O(B·N²·D) time; memory
        O(B·N²) up to `MAX_STORED`, beyond which units go one after the other, and a unit too large by itself takes
        O(N·(D + 128)), and with exchanges O(N·(D + k)).
    """
    kernel = kernel or TokenKernel(features, config.kernel, valid)
    order, covered = greedy_order(kernel, importance, k, config, groups=groups, valid=valid)
    rest = 1 - config.importance_weight
    return Covered(order, covered.sum(1) / rest if rest > 0 else None)


@torch.no_grad()
def greedy_order(
    kernel: TokenKernel,
    importance: Tensor,
    k: int,
    config: TokenPrunerConfig,
    *,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The greedy sequence of `choose`, units in parts that fit into memory.

    Returns:
        Tokens (B, k) in the order taken, and what the last step knows: (1 - l) pi_i max_{j in S} k_ij, (B, N) float32.
    """
    batch, n = importance.shape
    if len(parts := fitting_parts(batch, n)) > 1:
        inputs = [(kernel.part(s), importance[s], part_of(groups, s), part_of(valid, s)) for s in parts]
        results = [greedy_order(x, p, k, config, groups=g, valid=v) for x, p, g, v in inputs]
        return torch.cat([order for order, _ in results]), torch.cat([covered for _, covered in results])
    p = shares(importance, valid)
    pi = coverage_weights(p, *config.coverage_weights_of(k), valid)
    bonus = config.importance_weight * p / p.topk(k, dim=1).values.sum(1, keepdim=True)
    if valid is not None:
        bonus = bonus.masked_fill(~valid, -torch.inf)
    allowed, quota = bonus, Quota.of(importance, k, config, groups, valid)
    owed = None if quota is None else quota.owed  # `take` replaces it, and does not write into it
    if quota is not None:
        bonus = bonus.masked_fill(quota.closed(), -torch.inf)
    weights = (1 - config.importance_weight) * pi
    if n**2 > MAX_STORED:
        rows: Rows = lambda at: kernel.rows(at).mul_(weights.unsqueeze(1))  # noqa: E731
        gains: Gains = lambda covered: kernel.gains(weights, covered)  # noqa: E731
        order, covered = greedy_lazy(rows, gains, bonus, k, quota)
    else:
        matrix = kernel.weighted(weights)
        rows, gains = row_taker(matrix), lambda covered: row_gains(matrix, covered)
        lazy = matrix.device.type == "cpu"
        order, covered = greedy_lazy(rows, gains, bonus, k, quota) if lazy else greedy_dense(matrix, bonus, k, quota)
    if config.exchange_passes:
        order, covered = exchange(rows, gains, allowed, order, config.exchange_passes, groups, owed)
    return order, covered


def row_taker(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from tokens (B, M) long to their rows (B, M, N) of matrix (B, N, N)."""
    batch, n, _ = matrix.shape
    flat, first = matrix.view(batch * n, n), torch.arange(batch, device=matrix.device).unsqueeze(1) * n
    return lambda tokens: flat.index_select(0, (tokens + first).flatten()).view(batch, -1, n)


def row_gains(matrix: Tensor, covered: Tensor | None) -> Tensor:
    """sum_i relu(matrix_ji - covered_i) of all rows j: (B, N), of matrix (B, N, N) >= 0 and covered (B, N) or None."""
    if covered is None:
        return matrix.sum(-1)
    return torch.cat([(part - covered.unsqueeze(1)).relu_().sum(-1) for part in matrix.split(96, dim=1)], dim=1)


def fitting_parts(batch: int, n: int) -> list[slice]:
    """Units that go together, so that their matrices of all pairs of n tokens are `MAX_STORED` numbers at most."""
    fitting = max(1, MAX_STORED // n**2)
    return [slice(at, at + fitting) for at in range(0, batch, fitting)]


def part_of(values: Tensor | None, rows: slice) -> Tensor | None:
    """These units of a tensor that may be missing."""
    return None if values is None else values[rows]
