"""Every baseline that generates against its published rule, and what all methods that generate have in common."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_efficient
from hf_efficient import TokenPrunerConfig
from tests.representation.methods import GENERATORS, SELECTORS
from tests.representation.units import SEEDS, cosines, unit

# parts that not every method gives are there in what is tested here
reduce_tokens: Any = hf_efficient.reduce_tokens


def made(method: str, x: Tensor, p: Tensor, k: int) -> tuple[Tensor, list[int], list[int]]:
    mixture = GENERATORS[method](x[None], p[None], k, TokenPrunerConfig())
    return mixture.of(x[None])[0], mixture.anchors[0].tolist(), mixture.assignment[0].tolist()


def test_feature_pooling_averages_the_cells_of_a_raster():
    x, p = unit(0, n=144)
    tokens, anchors, cells = made("feature_pooling", x, p, 9)
    expected = torch.nn.functional.adaptive_avg_pool2d(x.T.reshape(1, 6, 12, 12), 3)[0].flatten(1).T
    torch.testing.assert_close(tokens, expected)
    assert cells[:12] == [0] * 4 + [1] * 4 + [2] * 4
    assert anchors == [13, 17, 21, 61, 65, 69, 109, 113, 117]
    tokens, anchors, cells = made("feature_pooling", x[:50], p[:50], 10)  # no square: stretches
    torch.testing.assert_close(tokens, x[:50].view(10, 5, 6).mean(1))
    assert anchors == list(range(2, 50, 5))


@pytest.mark.parametrize(("seed", "k", "merged"), [*((seed, 13, 2) for seed in SEEDS), (0, 32, 5)])
def test_visionzip_adds_to_each_target_the_mean_of_what_is_like_it(seed, k, merged):
    """Of k tokens 10 in 64 are merged: of 13 two, of 32 five."""
    x, p = unit(seed)
    c = cosines(x)
    dominant = p.sort(descending=True).indices[: k - merged].tolist()
    rest = [j for j in range(40) if j not in dominant]
    targets = rest[:: len(rest) // merged][:merged]
    joins: dict[int, list[int]] = {t: [] for t in targets}
    for j in set(rest) - set(targets):
        joins[targets[int(c[j, targets].argmax())]].append(j)
    expected = {j: x[j] for j in dominant} | {t: x[t] + x[joins[t]].mean(0) for t in targets if joins[t]}
    tokens, anchors, assignment = made("visionzip", x, p, k)
    assert anchors == sorted([*dominant, *targets])
    for place, (token, anchor) in enumerate(zip(tokens, anchors, strict=True)):
        torch.testing.assert_close(token, expected.get(anchor, x[anchor]))
        for j in joins.get(anchor, []):
            assert assignment[j] == place
    tokens, anchors, _ = made("visionzip", x, p, 1)
    assert anchors == [int(p.argmax())]
    torch.testing.assert_close(tokens[0], x[anchors[0]])


@pytest.mark.parametrize(("seed", "k", "by_attention"), [*((seed, 8, 2) for seed in SEEDS), (0, 20, 5)])
def test_prumerge_adds_the_nearest_by_attention(seed, k, by_attention):
    x, p = unit(seed, n=60)
    c, attention = cosines(x), p / p.sum()
    top = p.sort(descending=True).indices[:by_attention].tolist()
    rest = [j for j in range(60) if j not in top]
    spaced = k - by_attention
    kept = sorted(top + [rest[(2 * i + 1) * len(rest) // (2 * spaced)] for i in range(spaced)])
    tokens, anchors, _ = made("prumerge", x, p, k)
    assert anchors == kept
    for token, i in zip(tokens, kept, strict=True):
        near = sorted((j for j in range(60) if j != i), key=lambda j: -float(c[i, j]))[:32]
        torch.testing.assert_close(token, x[i] + (attention[near, None] * x[near]).sum(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("seed", "k"), itertools.product(range(3), (25, 7, 1)))
def test_tome_merges_the_best_pairs_by_weighted_mean(seed, k):
    x, p = unit(seed)
    x = 0.2 * x + torch.randn(
        40, 6, generator=torch.Generator().manual_seed(seed)
    )  # no clusters that any mean would find
    groups = [[j] for j in range(40)]
    while len(groups) > k:
        means = torch.stack([x[g].mean(0) for g in groups])
        c = cosines(means)
        even, odd = range(0, len(groups), 2), range(1, len(groups), 2)
        partner = {i: odd[int(c[i, 1::2].argmax())] for i in even}
        gone = sorted(even, key=lambda i: -float(c[i, partner[i]]))[: min(len(groups) - k, len(groups) // 2)]
        joined = {j: list(groups[j]) for j in odd}
        for i in gone:
            joined[partner[i]] += groups[i]
        groups = [groups[i] for i in even if i not in gone] + [joined[j] for j in odd]
    groups = sorted((sorted(g) for g in groups), key=lambda g: g[0])
    tokens, anchors, assignment = made("tome", x, p, k)
    torch.testing.assert_close(tokens, torch.stack([x[g].mean(0) for g in groups]), atol=1e-5, rtol=1e-5)
    assert anchors == [g[0] for g in groups]
    assert all(assignment[j] == place for place, g in enumerate(groups) for j in g)


@pytest.mark.parametrize("kept_by", ["holov", "divprune", "vispruner"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [13, 2, 1])
def test_restore_merges_what_another_method_drops_into_dense_places_that_differ(seed, k, kept_by):
    x, p = unit(seed)
    c = cosines(x)
    kept = SELECTORS[kept_by](x[None], p[None], k // 2)[0].tolist() if k > 1 else []
    rest = [j for j in range(40) if j not in kept]
    density = {i: sum(float(c[i, j]) for j in rest) for i in rest}

    def worth(i: int) -> float:
        return density[i] * (1 - max((float(c[i, j]) for j in rest if density[j] > density[i]), default=0.0))

    centers = sorted(rest, key=worth, reverse=True)[: k - len(kept)]
    groups = {i: [i] for i in [*kept, *centers]}
    for j in set(rest) - set(centers):
        groups[max(centers, key=lambda i, j=j: float(c[i, j]))].append(j)  # type: ignore[misc]
    members = sorted((sorted(g) for g in groups.values()), key=lambda g: g[(len(g) - 1) // 2])  # by lower median
    reduced = reduce_tokens(x[None], TokenPrunerConfig("restore", k, kept_by=kept_by), p[None])
    assert reduced.indices[0].tolist() == [g[(len(g) - 1) // 2] for g in members]
    torch.testing.assert_close(reduced.tokens[0], torch.stack([x[g].mean(0) for g in members]), atol=1e-5, rtol=1e-5)
    assert reduced.mass[0].tolist() == [len(g) for g in members]
    assert all(reduced.assignment[0, j] == place for place, g in enumerate(members) for j in g)


@pytest.mark.parametrize("method", GENERATORS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (12, 12), (49, 1), (50, 17), (144, 14), (144, 143)])
def test_exactly_k_tokens_at_distinct_places(method, n, k):
    x, p = unit(3, max(n, 8))
    tokens, anchors, assignment = made(method, x[:n], p[:n], k)
    assert tokens.shape == (k, 6)
    assert tokens.isfinite().all()
    assert len(set(anchors)) == k
    assert anchors == sorted(anchors)
    assert 0 <= anchors[0] <= anchors[-1] < n
    assert set(assignment) <= set(range(k))
    assert len(assignment) == n


@pytest.mark.parametrize("method", GENERATORS)
def test_generated_tokens_do_not_depend_on_batch_or_dtype_or_invalid_tokens(method):
    rows = [unit(seed, 90) for seed in range(4)]
    x, p = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    config = TokenPrunerConfig(method=method, budget=11)
    together = reduce_tokens(x, config, p)
    for row in range(4):
        alone = reduce_tokens(x[row : row + 1], config, p[row : row + 1])
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert torch.equal(alone.indices[0], together.indices[row])
    assert together.mass.sum(1).tolist() == [90] * 4
    assert reduce_tokens(x.bfloat16(), config, p).tokens.dtype == torch.bfloat16
    assert torch.equal(reduce_tokens(x, TokenPrunerConfig(method=method, budget=1.0), p).tokens, x)
    valid = torch.ones(4, 90, dtype=torch.bool)
    valid[:, 1::5] = False
    valid[1, :7] = False
    masked = reduce_tokens(x, config, p, valid=valid)
    noisy = torch.where(valid[..., None], x, 40 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    again = reduce_tokens(noisy, config, p, valid=valid)
    assert valid.gather(1, masked.indices).all()
    torch.testing.assert_close(again.tokens, masked.tokens, atol=1e-5, rtol=1e-5)
    if method != "itg":  # its initial centers are weighted by the whole unit's size
        only = reduce_tokens(x[:1, valid[0]], config, p[:1, valid[0]])
        torch.testing.assert_close(only.tokens[0], masked.tokens[0], atol=1e-5, rtol=1e-5)
