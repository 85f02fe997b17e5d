"""The kernel against its formula, and lazy greedy against dense greedy."""

import pytest
import torch
from torch import Tensor

from hf_efficient.representation.maths.greedy import greedy_dense, greedy_lazy
from hf_efficient.representation.maths.importance import shares
from hf_efficient.representation.maths.kernel import TokenKernel
from hf_efficient.representation.maths.quota import Quota
from hf_efficient.representation.selection import id_pruner
from tests.representation.objective import kernel, unit


@pytest.mark.parametrize("kind", ["rbf", "cosine"])
def test_kernel_is_its_formula_whichever_way_it_is_computed(kind: str) -> None:
    x = torch.cat([unit(0, 210)[0], 3 * unit(1, 210)[0]])
    expected = torch.stack([kernel(u, kind) for u in x]).float()
    weights = torch.rand(2, 210)
    tokens = TokenKernel(x, kind)
    ones = torch.ones_like(weights)
    torch.testing.assert_close(tokens.weighted(ones), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(tokens.weighted(weights), expected * weights[:, None], atol=2e-6, rtol=0)
    covered = torch.rand(2, 210) / 2
    gains = (expected * weights[:, None] - covered[:, None]).relu().sum(-1)
    torch.testing.assert_close(tokens.gains(weights, covered), gains, atol=1e-4, rtol=0)
    second = tokens.part(slice(1, 2)).weighted(weights[1:])
    torch.testing.assert_close(second, expected[1:] * weights[1:, None], atol=2e-6, rtol=0)
    index = torch.tensor([[5, 0, 209], [7, 7, 1]])
    rows = torch.stack([expected[b, index[b]] for b in range(2)])
    torch.testing.assert_close(tokens.rows(index), rows, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["rbf", "cosine"])
def test_kernel_does_not_move_with_the_tokens_nor_with_their_scale(kind: str) -> None:
    x, _ = unit(0, 60)
    here = TokenKernel(x, kind).weighted(torch.ones(1, 60))
    there = TokenKernel(1e3 * (x + 50), kind).weighted(torch.ones(1, 60))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)
    assert here.min() >= 0
    assert here.max() <= 1


@pytest.mark.parametrize(("kind", "alike"), [("rbf", 1.0), ("cosine", 0.5)])
def test_tokens_that_differ_by_rounding_alone_are_all_alike(kind: str, alike: float) -> None:
    """The last bit of float32 at 1000 is 2^-14: blown up to structure it would decide what is kept."""
    x = 1000 + 2.0**-14 * torch.randint(0, 2, (1, 60, 8), generator=torch.Generator().manual_seed(0))
    made = TokenKernel(x, kind).weighted(torch.ones(1, 60))
    torch.testing.assert_close(made, torch.full_like(made, alike), atol=1e-5, rtol=0)


# --- two ways to one sequence


@pytest.mark.parametrize("width", [1, 3, 64, 500])
def test_lazy_and_dense_greedy_take_the_same_sequence(width: int) -> None:
    torch.manual_seed(0)
    x = torch.cat([unit(seed, 200)[0] for seed in range(4)])
    x[1, 100:] = x[1, :100]  # every token twice
    x[2] = 1.0  # no differences at all
    matrix = TokenKernel(x, "rbf").weighted(torch.rand(4, 200) / 200)
    bonus = torch.rand(4, 200) / 1000
    bonus[2] = 0.0
    bonus[3, 50:90] = -torch.inf
    dense, dense_cover = greedy_dense(matrix, bonus, 120)
    assert all(len(set(row)) == 120 for row in dense.tolist())
    assert not set(dense[3].tolist()) & set(range(50, 90))

    def rows(index: Tensor) -> Tensor:
        return torch.stack([matrix[b, index[b]] for b in range(4)])

    def gains(covered: Tensor | None) -> Tensor:
        return matrix.sum(-1) if covered is None else (matrix - covered[:, None]).relu().sum(-1)

    lazy, lazy_cover = greedy_lazy(rows, gains, bonus, 120, width=width)
    assert torch.equal(lazy, dense)
    assert torch.equal(lazy_cover, dense_cover)


def test_lazy_and_dense_greedy_keep_the_same_quotas() -> None:
    x, p = unit(0, 200)
    groups = (torch.arange(200) // 50)[None]
    pi = shares(p)
    matrix = TokenKernel(x, "rbf").weighted(pi)
    orders = []
    for way in ("dense", "lazy"):
        quota = Quota(pi, 20, 0.9, groups, None)
        if way == "dense":
            orders.append(greedy_dense(matrix, pi, 20, quota)[0])
        else:
            rows = lambda at: matrix[:, at[0]]
            orders.append(greedy_lazy(rows, lambda c: id_pruner.row_gains(matrix, c), pi, 20, quota, width=16)[0])
    assert torch.equal(*orders)
