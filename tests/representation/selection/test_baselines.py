"""Every baseline that selects against its published rule, written down plainly for one small unit."""

import math

import pytest
import torch
from torch import Tensor

from hf_efficient import TokenPrunerConfig, reduce_tokens
from hf_efficient.representation.maths.sharing import share_budget
from tests.representation.methods import SELECTORS
from tests.representation.selection.rules import RULES, greedy
from tests.representation.units import SEEDS, cosines, unit


def take(method: str, x: Tensor, p: Tensor, k: int) -> list[int]:
    return SELECTORS[method](x[None], p[None], k)[0].tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", ["idpruner_mmr", "id_selection", "scope", "cen_prune", "divprune", "top_importance"])
def test_methods_take_what_is_worth_most_by_their_rule(method, seed):
    x, p = unit(seed)
    assert take(method, x, p, 12) == greedy(12, 40, RULES[method](x, p))


@pytest.mark.parametrize("seed", SEEDS)
def test_cdpruner_is_the_greedy_maximum_of_the_determinant(seed):
    x, p = unit(seed, n=20, width=12)
    assert take("cdpruner", x, p, 8) == greedy(8, 20, RULES["cdpruner"](x, p))


@pytest.mark.parametrize("seed", SEEDS)
def test_cdpruner_asks_for_the_determinant_where_relevance_is_small(seed):
    """Relevance from 1 down to 1e-4: what such tokens add is tiny beside the largest, and still decides."""
    x, p = unit(seed, n=24, width=32)
    p = 10 ** (-4 * p.sqrt())
    assert take("cdpruner", x, p, 23) == greedy(23, 24, RULES["cdpruner"](x, p))


@pytest.mark.parametrize("seed", SEEDS)
def test_cdpruner_tells_apart_tokens_that_are_much_alike(seed):
    """Cosines above 0.999, as behind some projectors: the residuals are small and not yet rounding."""
    x, p = unit(seed, n=24, width=32)
    x = x.mean(0) + 0.005 * x
    assert cosines(x).min() > 0.999
    assert take("cdpruner", x, p, 12) == greedy(12, 24, RULES["cdpruner"](x, p))


def test_cdpruner_gains_nothing_by_a_token_of_zeros():
    x, p = unit(0, n=20, width=12)
    x[3], p[3] = 0, 2 * p.max()
    assert 3 not in take("cdpruner", x, p, 12)


@pytest.mark.parametrize("seed", SEEDS)
def test_cdpruner_goes_on_by_importance_where_the_rank_ends(seed):
    x, p = unit(seed, n=30, width=4)
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
def test_spare_takes_the_longest_residual(seed):
    x, p = unit(seed, width=16)
    assert take("spare", x, p, 10) == greedy(10, 40, RULES["spare"](x, p))


@pytest.mark.parametrize("seed", SEEDS)
def test_spare_projects_on_all_that_is_taken_over_many_steps(seed):
    """More steps than residuals are left alone for, by tokens that lie all around."""
    x = torch.randn(60, 48, generator=torch.Generator().manual_seed(seed)) * torch.linspace(1, 2, 60)[:, None]
    assert take("spare", x, torch.ones(60), 45) == greedy(45, 60, RULES["spare"](x, torch.ones(60)))


def test_spare_goes_on_by_position_where_the_rank_ends():
    x, p = unit(0, width=4)
    order = take("spare", x, p, 40)
    assert sorted(order) == list(range(40))
    assert order[4:] == sorted(order[4:])


@pytest.mark.parametrize("attended", [True, False])
@pytest.mark.parametrize("n", [64, 55])  # crops of four tokens; of three and four
@pytest.mark.parametrize("seed", SEEDS)
def test_holov_gives_crops_their_share_and_takes_the_important_of_each(seed, n, attended):
    x, p = unit(seed, n=n)
    if not attended:  # then variety alone tells crops apart
        p = 1 + 1e-6 * p
    c, attention = cosines(x), p / p.sum()
    crops = [[j for j in range(n) if j * 16 // n == i] for i in range(16)]
    variety = torch.zeros(n)
    for crop in crops:
        for i in crop:
            others = torch.tensor([float(c[i, j]) for j in crop if j != i])
            variety[i] = others.var(correction=0)
    score = attention + 0.09 * variety / variety.sum()
    worth = torch.tensor([float(score[crop].mean()) for crop in crops])
    given = [
        min(len(crop), math.floor(float(w / worth.sum()) * 20 + 1e-4)) for crop, w in zip(crops, worth, strict=True)
    ]
    while sum(given) < 20:
        for i in sorted(range(16), key=lambda i: -float(worth[i])):
            if sum(given) < 20 and given[i] < len(crops[i]):
                given[i] += 1
    expected = [j for crop, g in zip(crops, given, strict=True) for j in sorted(crop, key=lambda j: -float(p[j]))[:g]]
    assert take("holov", x, p, 20) == expected


@pytest.mark.parametrize(
    ("seed", "k", "frames"), [(0, 24, 6), (1, 24, 6), (2, 4, 6), (3, 9, 2), (4, 24, 1), (5, 44, 6)]
)
def test_v_cast_shares_by_curvature_and_takes_the_unlike_and_long_of_each_frame(seed, k, frames):
    x, p = unit(seed, n=48)
    cosine = torch.nn.functional.cosine_similarity
    size = 48 // frames
    cut = [range(size * t, size * t + size) for t in range(frames)]
    mean = [torch.nn.functional.normalize(x[list(f)].double().mean(0), dim=0) for f in cut]
    turn = [
        1 - float(cosine(mean[t] - mean[t - 1], mean[t + 1] - mean[t], dim=0)) if 0 < t < frames - 1 else 1.0
        for t in range(frames)
    ]
    part = [math.exp(c / 0.7) / sum(math.exp(c / 0.7) for c in turn) for c in turn]
    least = int(k >= frames)
    given = [min(size, least + math.floor(part[t] * (k - least * frames))) for t in range(frames)]
    while sum(given) < k:
        for t in sorted(range(frames), key=lambda t: -part[t]):
            given[t] += int(sum(given) < k and given[t] < size)
    expected = []
    for f, r, g in zip(cut, mean, given, strict=True):
        long = {j: float(x[j].norm()) for j in f}
        low, high = min(long.values()), max(long.values())
        score = {j: 1 - float(cosine(x[j].double(), r, dim=0)) + (long[j] - low) / (high - low) for j in f}
        expected += [j for _, j in sorted((-score[j], j) for j in f)][:g]
    groups = torch.arange(48)[None] // size
    assert SELECTORS["v_cast"](x[None], p[None], k, groups=groups if frames > 1 else None)[0].tolist() == expected


def test_v_cast_gives_more_to_a_turn_and_knows_nothing_of_invalid_tokens():
    steps = [[1.0, 0.0, 0.2], [0.8, 0.2, 0.2], [0.6, 0.4, 0.2], [0.8, 0.2, 0.2], [1.0, 0.0, 0.2]]  # there and back
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor(steps).repeat_interleave(12, 0) + 1e-3 * torch.randn(60, 3, generator=generator)
    groups = torch.arange(60) // 12
    config = TokenPrunerConfig("v_cast", 20)
    counts = torch.bincount(groups[reduce_tokens(x[None], config, groups=groups).indices[0]]).tolist()
    assert counts.index(max(counts)) == 2
    assert min(counts) >= 1
    valid = (torch.arange(60) % 6 != 1)[None]
    masked = reduce_tokens(torch.where(valid[..., None], x, 9.0), config, groups=groups, valid=valid).indices[0]
    alone = reduce_tokens(x[None, valid[0]], config, groups=groups[valid[0]]).indices[0]
    assert masked.tolist() == valid[0].nonzero()[:, 0][alone].tolist()


@pytest.mark.parametrize("k", [3, 4, 6, 8])
def test_v_cast_looks_at_the_frames_of_its_own_row_alone_whatever_their_numbers(k):
    """Rows of two and of six frames in one batch; numbers with gaps; frames that hold no valid token."""
    config = TokenPrunerConfig("v_cast", k)
    for seed in range(20):
        x = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(seed))
        groups = torch.stack([torch.arange(12) // 6, torch.arange(12) // 2])
        alone = [reduce_tokens(x[b : b + 1], config, groups=groups[b]).indices for b in range(2)]
        assert torch.equal(reduce_tokens(x, config, groups=groups).indices, torch.cat(alone))
        assert torch.equal(reduce_tokens(x, config, groups=groups * 1_000_000_000_000).indices, torch.cat(alone))
        valid = (groups[1:] != 2) & (groups[1:] != 5)
        inner = valid[0].nonzero()[:, 0]
        masked = reduce_tokens(x[1:], config, groups=groups[1:], valid=valid).indices[0]
        rest = reduce_tokens(x[1:, inner], config, groups=groups[1:, inner]).indices[0]
        assert torch.equal(masked, inner[rest])


@pytest.mark.parametrize("n", [5, 10])
def test_holov_takes_the_important_where_every_crop_is_one_token(n):
    """No other token is in the crop, so there is no variety to measure."""
    x, p = unit(3, n=max(n, 4))
    x, p = x[:n], p[:n]
    assert sorted(take("holov", x, p, 4)) == sorted(p.topk(4).indices.tolist())


def test_budgets_are_exact_and_never_more_than_there_is():
    weights = torch.tensor([[8.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    count = torch.tensor([3, 3, 4])
    for k in range(11):
        given = share_budget(weights, count, k)
        assert given.sum(1).tolist() == [k] * 3
        assert (given <= count).all()
    assert share_budget(weights, count, 5)[0].tolist() == [3, 1, 1]
