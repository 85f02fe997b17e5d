"""ITG against what a quantiser of a distribution must satisfy, and against k-means written down plainly."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_efficient
from hf_efficient import TokenPrunerConfig
from hf_efficient.representation.maths import kmeans
from hf_efficient.representation.maths.mixture import Mixture, nearest
from hf_efficient.representation.selection import id_pruner
from tests.representation.units import LargestTensor

# parts that not every method gives are there in what is tested here
reduce_tokens: Any = hf_efficient.reduce_tokens


def units(batch: int = 3, n: int = 80, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens in loose clusters and their importance."""
    generator = torch.Generator().manual_seed(seed)
    clusters = max(3, n // 6)
    centres = torch.randn(batch, clusters, width, generator=generator) * 2
    member = torch.randint(0, clusters, (batch, n), generator=generator)
    x = centres.gather(1, member.unsqueeze(-1).expand(-1, -1, width))
    return x + torch.randn(batch, n, width, generator=generator) / 2, torch.rand(batch, n, generator=generator) ** 2


def config(**settings) -> TokenPrunerConfig:
    return TokenPrunerConfig(**{"method": "itg", "budget": 9, "centroid_share": 1.0, **settings})


def lost(x: Tensor, z: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i min_k |x_i - z_k|², (B,)."""
    return (weights * torch.cdist(x, z).square().amin(-1)).sum(1)


def plain_lloyd(x: Tensor, w: Tensor, initial: list[int], steps: int) -> tuple[Tensor, list[int]]:
    """One unit, token by token; every seed stays in its cluster."""
    centres = [x[s] for s in initial]
    for _ in range(steps + 1):
        away = [[float((one - centre).norm()) for centre in centres] for one in x]
        member = [row.index(min(row)) for row in away]
        for k, s in enumerate(initial):
            member[s] = k
        groups = [[i for i in range(len(x)) if member[i] == k] for k in range(len(initial))]
        centres = [(w[g, None] * x[g]).sum(0) / w[g].sum() for g in groups]
    return torch.stack(centres), member


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_tokens_are_those_of_plain_weighted_k_means(steps):
    x, p = units(batch=2, n=40)
    reduced = reduce_tokens(x, config(lloyd_steps=steps, initial_centers="coverage", importance_power=0.5), p)
    weights = kmeans.cluster_weights(p, None)
    initial = id_pruner.select(x, p, 9, config()).sort(dim=1).values
    for row in range(2):
        centres, member = plain_lloyd(x[row], weights[row], initial[row].tolist(), steps)
        away = (x[row] - centres[member]).norm(dim=1)
        anchors = [min((i for i in range(40) if member[i] == k), key=lambda i: float(away[i])) for k in range(9)]
        order = sorted(range(9), key=lambda k: anchors[k])
        assert reduced.indices[row].tolist() == [anchors[k] for k in order]
        assert reduced.assignment[row].tolist() == [order.index(k) for k in member]
        mean = torch.stack([centres[k] for k in order])
        groups = [[i for i in range(40) if member[i] == k] for k in order]
        w = weights[row]
        length = torch.stack([(w[g] * x[row, g].norm(dim=1)).sum() / w[g].sum() for g in groups])
        torch.testing.assert_close(reduced.tokens[row], mean * (length / mean.norm(dim=1))[:, None], atol=1e-5, rtol=0)
        assert reduced.mass[row].tolist() == [len(g) for g in groups]


def test_error_falls_with_every_step_and_is_below_that_of_the_initial_centers():
    x, p = units(n=200)
    w = kmeans.cluster_weights(p, None)
    initial = id_pruner.select(x, p, 12, config()).sort(dim=1).values
    kept = x.gather(1, initial.unsqueeze(-1).expand(-1, -1, 8))
    errors = [lost(x, kept, w)]
    for steps in range(8):
        centres, assignment = kmeans.lloyd(x, w, initial, steps)
        held = centres.gather(1, assignment.unsqueeze(-1).expand_as(x))
        errors.append((w * (x - held).square().sum(-1)).sum(1))
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-6)).all()
    assert (errors[-1] < 0.8 * errors[0]).all()


def test_weighted_mean_of_all_tokens_is_kept_and_the_error_is_the_variance_lost():
    """Cov(P) = Cov(Q) + scatter within clusters, so that the error is exactly the lost total variance."""
    x, p = units()
    w = kmeans.cluster_weights(p, None)
    w = w / w.sum(1, keepdim=True)
    initial = id_pruner.select(x, p, 9, config()).sort(dim=1).values
    z, assignment = kmeans.lloyd(x, w, initial, 5)
    mass = torch.zeros(3, 9).scatter_add(1, assignment, w)
    mean = (w.unsqueeze(-1) * x).sum(1)
    torch.testing.assert_close((mass.unsqueeze(-1) * z).sum(1), mean, atol=1e-5, rtol=1e-5)
    total = (w * (x - mean[:, None]).square().sum(-1)).sum(1)
    explained = (mass * (z - mean[:, None]).square().sum(-1)).sum(1)
    held = z.gather(1, assignment.unsqueeze(-1).expand_as(x))
    within = (w * (x - held).square().sum(-1)).sum(1)
    torch.testing.assert_close(total, explained + within, atol=1e-4, rtol=1e-4)


def best_of_all_clusterings(x: Tensor, w: Tensor, k: int) -> float:
    """min over all assignments of sum_i w_i |x_i - mean of its cluster|², of x (N, D) with N small."""
    labels = torch.cartesian_prod(*[torch.arange(k)] * len(x))
    member = torch.nn.functional.one_hot(labels, k).double() * w.double()[:, None]
    held = member.sum(1)
    sums = torch.einsum("anl,nd->ald", member, x.double())
    explained = (sums.square().sum(-1) / held.clamp_min(1e-12)).sum(1)
    return float((w.double() * x.double().square().sum(1)).sum() - explained.max())


def test_error_bounds_the_wasserstein_distance_and_is_close_to_the_best_of_all_clusterings():
    """W2² is at most the cost of any plan, and the assignment is a plan; with means as atoms it is the best plan."""
    linprog = pytest.importorskip("scipy.optimize").linprog
    ratios = []
    for seed in range(20):
        x, p = units(batch=1, n=10, width=3, seed=seed)
        w = kmeans.cluster_weights(p, None)
        w = w / w.sum()
        initial = id_pruner.select(x, p, 3, config()).sort(dim=1).values
        z, assignment = kmeans.lloyd(x, w, initial, 10)
        held = z.gather(1, assignment.unsqueeze(-1).expand_as(x))
        cost = float((w * (x - held).square().sum(-1)).sum())
        mass = torch.zeros(1, 3).scatter_add(1, assignment, w)[0]
        rows, columns = torch.kron(torch.eye(10), torch.ones(1, 3)), torch.kron(torch.ones(1, 10), torch.eye(3))
        plan = linprog(
            torch.cdist(x[0].double(), z[0].double()).square().flatten().numpy(),
            A_eq=torch.cat([rows, columns[:-1]]).double().numpy(),
            b_eq=torch.cat([w[0], mass[:-1]]).double().numpy(),
        )
        assert plan.status == 0
        assert plan.fun <= cost + 1e-4
        ratios.append(cost / best_of_all_clusterings(x[0], w[0], 3))
    assert min(ratios) >= 1 - 1e-3
    assert sum(ratios) / len(ratios) <= 1.2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_anchors_are_real_and_the_share_of_the_mean_moves_tokens_between_both(share):
    x, p = units()
    reduced = reduce_tokens(x, config(centroid_share=share), p)
    anchors = x.gather(1, reduced.indices.unsqueeze(-1).expand(-1, -1, 8))
    assert (reduced.indices.diff(dim=1) > 0).all()
    assert torch.equal(reduced.assignment.gather(1, reduced.indices), torch.arange(9).expand(3, -1))
    mean = reduce_tokens(x, config(centroid_share=1.0), p).mixture
    mean.keep_norm = False
    mixed = share * mean.of(x) + (1 - share) * anchors
    torch.testing.assert_close(torch.cosine_similarity(mixed, reduced.tokens, dim=-1), torch.ones(3, 9))
    if share == 0:
        torch.testing.assert_close(reduced.tokens, anchors)


def test_lengths_are_restored():
    x, p = units()
    means = reduce_tokens(x, config(), p)
    plain = Mixture(means.mixture.anchors, means.mixture.assignment, means.mixture.weights)
    length = (means.mixture.weights * x.norm(dim=-1)).new_zeros(3, 9)
    length = length.scatter_add(1, means.assignment, means.mixture.weights * x.norm(dim=-1))
    torch.testing.assert_close(means.tokens.norm(dim=-1), length)
    assert (plain.of(x).norm(dim=-1) < length + 1e-5).all()


def test_the_same_mixture_makes_tokens_of_other_levels_and_unpools_them():
    x, p = units()
    reduced = reduce_tokens(x, config(), p)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    torch.testing.assert_close(reduced.mixture.of(x @ turn), reduced.tokens @ turn, atol=1e-5, rtol=1e-4)
    back = reduced.unpool()
    assert back.shape == x.shape
    for row, token in ((0, 5), (2, 79)):
        assert torch.equal(back[row, token], reduced.tokens[row, reduced.assignment[row, token]])
    assert (reduced.report.reconstruction_error < 0.5).all()
    with pytest.raises(ValueError, match="proportional_attention=True"):
        reduce_tokens(x, TokenPrunerConfig(budget=9), p).unpool()


@pytest.mark.parametrize("k", [1, 9, 79, 80, 200])
def test_mass_counts_every_token_once(k):
    x, p = units()
    reduced = reduce_tokens(x, config(budget=k), p)
    assert reduced.tokens.shape == (3, min(k, 80), 8)
    assert reduced.mass.sum(1).tolist() == [80.0] * 3
    assert (reduced.mass >= 1).all()
    if k >= 80:
        assert torch.equal(reduced.tokens, x)
        assert reduced.mixture is None
        assert reduced.report.reconstruction_error.tolist() == [0.0] * 3


def test_equal_tokens_and_zero_importance_leave_no_cluster_empty():
    same = torch.full((1, 60, 8), 0.3)
    for p in (torch.zeros(1, 60), torch.ones(1, 60), torch.eye(60)[:1]):
        reduced = reduce_tokens(same, config(), p)
        torch.testing.assert_close(reduced.tokens, same[:, :9])
        assert len(set(reduced.indices[0].tolist())) == 9
        assert reduced.mass.sum() == 60
    zero = reduce_tokens(torch.zeros(1, 60, 8), config(), torch.ones(1, 60))
    assert torch.equal(zero.tokens, torch.zeros(1, 9, 8))


def test_batch_equals_single_and_16_bit_equals_its_values_in_32():
    x, p = units()
    together = reduce_tokens(x, config(), p)
    for row in range(3):
        alone = reduce_tokens(x[row : row + 1], config(), p[row : row + 1])
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert torch.equal(alone.assignment[0], together.assignment[row])
    short = reduce_tokens(x.bfloat16(), config(), p)
    exact = reduce_tokens(x.bfloat16().float(), config(), p)
    assert torch.equal(short.assignment, exact.assignment)
    assert torch.equal(short.tokens, exact.tokens.bfloat16())
    assert torch.equal(together.tokens, reduce_tokens(x.clone(), config(), p.clone()).tokens)


def test_invalid_tokens_have_no_part():
    x, p = units()
    valid = torch.rand(3, 80, generator=torch.Generator().manual_seed(2)) > 0.3
    reduced = reduce_tokens(x, config(), p, valid=valid)
    noisy = torch.where(valid.unsqueeze(-1), x, 50 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)))
    again = reduce_tokens(noisy, config(), p, valid=valid)
    assert valid.gather(1, reduced.indices).all()
    assert torch.equal(reduced.indices, again.indices)
    torch.testing.assert_close(reduced.tokens, again.tokens, atol=1e-5, rtol=1e-5)
    assert torch.equal(reduced.mass.sum(1), valid.sum(1).float())


def test_gradients_flow_to_every_token_and_compile_changes_nothing():
    x, p = units()
    x.requires_grad_()
    reduced = reduce_tokens(x, config(), p)
    reduced.tokens.sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(-1) > 0).all()
    x = x.detach()
    compiled = torch.compile(lambda t: 2 * reduce_tokens(t, config()).tokens, backend="eager")
    assert torch.equal(compiled(x), 2 * reduce_tokens(x, config()).tokens)


def test_ten_thousand_tokens_need_no_matrix_of_all_pairs():
    x, p = units(batch=1, n=10_000, width=16)
    initial = torch.arange(0, 10_000, 50)[None]
    with LargestTensor() as largest:
        z, assignment = kmeans.lloyd(x, kmeans.cluster_weights(p, None), initial, 5)
        anchors = kmeans.medoids(x, z, assignment, None)
    assert len(set(anchors[0].tolist())) == 200
    assert largest.numbers <= 1024 * 200 * 1.5  # a part of the tokens against all centres
    assert torch.equal(assignment[0, ::50], torch.arange(200))


def test_nearest_is_the_nearest_and_the_first_of_equals():
    x, _ = units(n=2100)
    centres = x[:, :40].clone()
    centres[:, 7] = centres[:, 3]
    found = nearest(x, centres)
    distance = torch.cdist(x.double(), centres.double())
    chosen = distance.gather(-1, found.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(chosen, distance.amin(-1), atol=1e-5)
    assert not (found == 7).any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"lloyd_steps": -1}, "lloyd_steps=-1"), ({"lloyd_steps": 2.0}, "lloyd_steps=2.0"),
     ({"centroid_share": 1.5}, "centroid_share=1.5"), ({"proportional_attention": 1}, "proportional_attention=1")],
)  # fmt: skip
def test_settings_are_checked(settings, said):
    with pytest.raises(ValueError, match=said):
        config(**settings)
