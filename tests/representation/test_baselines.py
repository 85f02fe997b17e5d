"""Every baseline against its published rule, written down plainly for one small unit."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import hf_efficient
from hf_efficient import TokenPrunerConfig
from hf_efficient.representation.selection import GENERATORS, SELECTORS
from hf_efficient.representation.sharing import share_budget

SEEDS = range(5)

# parts that not every method gives are there in what is tested here
reduce_tokens: Any = hf_efficient.reduce_tokens


def unit(seed: int, n: int = 40, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n // 4, width, generator=generator)
    x = centres[torch.randint(0, n // 4, (n,), generator=generator)] + 0.5 * torch.randn(n, width, generator=generator)
    return x, torch.rand(n, generator=generator) ** 2


def take(method: str, x: Tensor, p: Tensor, k: int) -> list[int]:
    return SELECTORS[method](x[None], p[None], k)[0].tolist()


def cosines(x: Tensor) -> Tensor:
    return cosine_similarity(x[:, None].double(), x[None].double(), dim=-1)


def scaled(values: Tensor) -> Tensor:
    return ((values - values.min()) / (values.max() - values.min())).double()


def greedy(k: int, n: int, value) -> list[int]:
    """Plain greedy of value(taken, j)."""
    taken: list[int] = []
    for _ in range(k):
        taken.append(max((j for j in range(n) if j not in taken), key=lambda j: float(value(taken, j))))
    return taken


@pytest.mark.parametrize("seed", SEEDS)
def test_idpruner_is_maximal_marginal_relevance(seed):
    x, p = unit(seed)
    c, imp = cosines(x), scaled(p)
    rule = greedy(12, 40, lambda s, j: 0.5 * imp[j] - 0.5 * c[j, s].max() if s else imp[j])
    assert take("idpruner_mmr", x, p, 12) == rule


@pytest.mark.parametrize("seed", SEEDS)
def test_id_selection_suppresses_what_is_like_the_chosen(seed):
    x, p = unit(seed)
    weight = torch.exp(-20 * (1 - cosines(x)) ** 2)
    score, taken = scaled(p), []
    for _ in range(12):
        best = max((j for j in range(40) if j not in taken), key=lambda j: float(score[j]))
        taken.append(best)
        score = score - weight[best] * score[best]
    assert take("id_selection", x, p, 12) == taken


@pytest.mark.parametrize("seed", SEEDS)
def test_scope_multiplies_saliency_and_gain_of_coverage(seed):
    x, p = unit(seed)
    c = cosines(x)

    def gain(taken: list[int], j: int) -> Tensor:
        covered = c[:, taken].amax(1).clamp_min(0) if taken else torch.zeros(40)
        return p[j] * (c[:, j] - covered).clamp_min(0).sum()

    assert take("scope", x, p, 12) == greedy(12, 40, gain)


@pytest.mark.parametrize("seed", SEEDS)
def test_cdpruner_is_the_greedy_maximum_of_the_determinant(seed):
    x, p = unit(seed, n=20, width=12)
    r = scaled(p) + 1e-6
    kernel = r[:, None] * cosines(x) * r
    rule = greedy(8, 20, lambda s, j: torch.logdet(kernel[[*s, j]][:, [*s, j]] + 1e-12 * torch.eye(len(s) + 1)))
    assert take("cdpruner", x, p, 8) == rule


def test_cdpruner_goes_on_by_importance_where_the_rank_ends():
    x, p = unit(0, n=30, width=4)
    order = take("cdpruner", x, p, 30)
    assert sorted(order) == list(range(30))
    assert order[4:] == sorted(order[4:], key=lambda j: -float(p[j]))


@pytest.mark.parametrize("seed", SEEDS)
def test_vispruner_takes_the_important_and_thins_out_the_rest(seed):
    x, p = unit(seed)
    c = cosines(x)
    important = p.sort(descending=True).indices[:6].tolist()
    rest = [j for j in range(40) if j not in important]
    while len(rest) > 6:
        even, odd = rest[::2], rest[1::2]
        drop = min(8, len(rest) // 2, len(rest) - 6)
        gone = sorted(even, key=lambda i: -float(c[i, odd].max()))[:drop]
        rest = sorted(set(rest) - set(gone))
    assert take("vispruner", x, p, 12) == important + rest


@pytest.mark.parametrize("seed", SEEDS)
def test_dart_takes_what_is_least_like_its_pivots(seed):
    x, p = unit(seed)
    c = cosines(x)
    pivots = sorted(range(40), key=lambda j: -float(x[j].abs().sum()))[:8]
    taken = list(pivots)
    for turn, pivot in enumerate(pivots):
        share = math.ceil((14 - len(taken)) / (8 - turn))
        taken += sorted((j for j in range(40) if j not in taken), key=lambda j: float(c[pivot, j]))[:share]
    assert take("dart", x, p, 14) == taken
    assert take("dart", x, p, 3) == pivots[:3]


@pytest.mark.parametrize("seed", SEEDS)
def test_cen_prune_is_max_min_of_centred_tokens_times_distinctiveness(seed):
    x, p = unit(seed)
    worth = scaled(-(cosines(x).sum(1) - 1) / 39)
    d = 1 - cosines(x - x.mean(0))

    def value(taken: list[int], j: int) -> Tensor:
        others = taken or [i for i in range(40) if i != j]
        return worth[j] * d[j, others].min()

    assert take("cen_prune", x, p, 12) == greedy(12, 40, value)


@pytest.mark.parametrize("seed", SEEDS)
def test_spare_takes_the_longest_residual(seed):
    x, p = unit(seed, width=16)

    def residual(taken: list[int], j: int) -> Tensor:
        if not taken:
            return x[j].double().norm()
        basis = x[taken].double().T
        return (x[j].double() - basis @ torch.linalg.lstsq(basis, x[j].double()).solution).norm()

    assert take("spare", x, p, 10) == greedy(10, 40, residual)


def test_spare_goes_on_by_position_where_the_rank_ends():
    x, p = unit(0, width=4)
    order = take("spare", x, p, 40)
    assert sorted(order) == list(range(40))
    assert order[4:] == sorted(order[4:])


@pytest.mark.parametrize("seed", SEEDS)
def test_holov_gives_crops_their_share_and_takes_the_important_of_each(seed):
    x, p = unit(seed, n=64)
    c, attention = cosines(x), p / p.sum()
    crops = [range(4 * i, 4 * i + 4) for i in range(16)]
    variety = torch.zeros(64)
    for crop in crops:
        for i in crop:
            others = torch.tensor([float(c[i, j]) for j in crop if j != i])
            variety[i] = others.var(correction=0)
    score = attention + 0.09 * variety / variety.sum()
    worth = torch.tensor([float(score[list(crop)].mean()) for crop in crops])
    given = [min(4, math.floor(float(w / worth.sum()) * 20 + 1e-4)) for w in worth]
    while sum(given) < 20:
        for i in sorted(range(16), key=lambda i: -float(worth[i])):
            if sum(given) < 20 and given[i] < 4:
                given[i] += 1
    expected = [j for crop, g in zip(crops, given, strict=True) for j in sorted(crop, key=lambda j: -float(p[j]))[:g]]
    assert take("holov", x, p, 20) == expected


def test_budgets_are_exact_and_never_more_than_there_is():
    worth = torch.tensor([[8.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    count = torch.tensor([3, 3, 4])
    for k in range(11):
        given = share_budget(worth, count, k)
        assert given.sum(1).tolist() == [k] * 3
        assert (given <= count).all()
    assert share_budget(worth, count, 5)[0].tolist() == [3, 1, 1]


# --- methods that generate


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


@pytest.mark.parametrize("seed", SEEDS)
def test_visionzip_adds_to_each_target_the_mean_of_what_is_like_it(seed):
    x, p = unit(seed)
    c = cosines(x)
    dominant = p.sort(descending=True).indices[:11].tolist()  # 13 tokens, 13 * 10 / 64 of them contextual
    rest = [j for j in range(40) if j not in dominant]
    targets = rest[:: len(rest) // 2][:2]
    joins: dict[int, list[int]] = {t: [] for t in targets}
    for j in set(rest) - set(targets):
        joins[targets[int(c[j, targets].argmax())]].append(j)
    expected = {j: x[j] for j in dominant} | {t: x[t] + x[joins[t]].mean(0) for t in targets if joins[t]}
    tokens, anchors, assignment = made("visionzip", x, p, 13)
    assert anchors == sorted([*dominant, *targets])
    for place, (token, anchor) in enumerate(zip(tokens, anchors, strict=True)):
        torch.testing.assert_close(token, expected.get(anchor, x[anchor]))
        for j in joins.get(anchor, []):
            assert assignment[j] == place
    tokens, anchors, _ = made("visionzip", x, p, 1)
    assert anchors == [int(p.argmax())]
    torch.testing.assert_close(tokens[0], x[anchors[0]])


@pytest.mark.parametrize("seed", SEEDS)
def test_prumerge_adds_the_nearest_by_attention(seed):
    x, p = unit(seed, n=60)
    c, attention = cosines(x), p / p.sum()
    top = p.sort(descending=True).indices[:2].tolist()
    rest = [j for j in range(60) if j not in top]
    kept = sorted(top + [rest[(2 * i + 1) * 58 // 12] for i in range(6)])
    tokens, anchors, _ = made("prumerge", x, p, 8)
    assert anchors == kept
    for token, i in zip(tokens, kept, strict=True):
        near = sorted((j for j in range(60) if j != i), key=lambda j: -float(c[i, j]))[:32]
        torch.testing.assert_close(token, x[i] + (attention[near, None] * x[near]).sum(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("seed", "k"), itertools.product(range(3), (25, 7, 1)))
def test_tome_merges_the_best_pairs_by_weighted_mean(seed, k):
    x, p = unit(seed)
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
    if method != "itg":  # its seeds are weighted by the whole unit's size
        only = reduce_tokens(x[:1, valid[0]], config, p[:1, valid[0]])
        torch.testing.assert_close(only.tokens[0], masked.tokens[0], atol=1e-5, rtol=1e-5)
