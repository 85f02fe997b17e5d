"""N:M patterns: groups against reshaped tensors, exchanges against all choices there are."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.sparsity.planted import patterned, recover
from hf_efficient.methods import SPARSITY
from hf_efficient.optimizer_state import Pace
from hf_efficient.sparsity.pattern import Groups, NMPattern
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.topology import GMP, BiDST, RigL
from tests.sparsity.problems import train

# shape, dimension of the inputs: Linear, Conv1D of GPT-2, a convolution, fused experts in both layouts, Conv1d
LAYOUTS = [((6, 16), 1), ((16, 5), 0), ((3, 8, 3, 2), 1), ((2, 5, 8), 2), ((2, 8, 5), 1), ((4, 16, 3), 1)]
PATTERNS = [NMPattern(2, 4), NMPattern(1, 4), NMPattern(3, 4), NMPattern(4, 8), NMPattern(1, 2)]
EVERYWHERE = pytest.mark.parametrize(("shape", "axis"), LAYOUTS)


def in_groups(whole: Tensor, axis: int, of: int) -> Tensor:
    """(groups, M): neighbours along the inputs, by moving these to the end."""
    return whole.movedim(axis, -1).reshape(-1, of)


def counts(weight: SparseWeight, axis: int) -> Tensor:
    assert weight.groups is not None
    return in_groups(weight.mask().view(weight.shape), axis, weight.groups.pattern.of).sum(1)


@EVERYWHERE
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_groups_are_neighbours_along_the_inputs(shape: tuple[int, ...], axis: int, pattern: NMPattern) -> None:
    groups = Groups.along(pattern, shape, axis)
    n = SparseWeight(shape, 1).numel
    members = in_groups(torch.arange(n).view(shape), axis, pattern.of)
    number = groups.of(torch.arange(n))
    assert all(len(set(number[row].tolist())) == 1 for row in members)
    assert set(number.tolist()) == set(range(len(members)))
    scores = torch.randn(n, generator=torch.Generator().manual_seed(1))
    best = {int(i) for row in members for i in sorted(row, key=lambda i: -float(scores[i]))[: pattern.kept]}
    found = groups.best(scores)
    assert found.tolist() == sorted(best)
    assert len(found) == groups.active
    whole = torch.zeros(n)
    whole[found] = 1.0
    assert groups.most_in_one(whole.view(shape)) == pattern.kept
    whole[members[-1]] = 1.0
    assert groups.most_in_one(whole.view(shape)) == pattern.of


@EVERYWHERE
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_pairs_are_matched_by_rank_in_each_group(shape: tuple[int, ...], axis: int, pattern: NMPattern) -> None:
    weight = patterned(shape, axis, pattern, 0)
    generator = torch.Generator().manual_seed(1)
    inactive = weight.inactive_indices()
    inactive = inactive[
        torch.randperm(len(inactive), generator=generator)[: 2 * len(inactive) // 3]
    ]  # some cannot grow
    drop, grow = torch.rand(len(weight.indices), generator=generator), torch.rand(len(inactive), generator=generator)
    groups = Groups.along(pattern, shape, axis)
    expected = set()
    for members in in_groups(torch.arange(weight.numel).view(shape), axis, pattern.of):
        one = set(members.tolist())
        low = sorted((float(s), slot) for slot, (i, s) in enumerate(zip(weight.indices, drop)) if int(i) in one)
        high = sorted((-float(s), at) for at, (i, s) in enumerate(zip(inactive, grow)) if int(i) in one)
        expected |= {(slot, at) for (_, slot), (_, at) in zip(low, high)}
    slots, at = groups.pairs(weight.indices, drop, inactive, grow)
    assert set(zip(slots.tolist(), at.tolist())) == expected
    assert len(slots) == len(expected)


def groups_of(indices: list[int]) -> list[int]:
    """Of a (3, 8) weight, 2:4, counted by hand."""
    return sorted(i // 8 * 2 + i % 8 // 4 for i in indices)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.17, 0.34, 1.0])
def test_rigl_in_groups_is_the_best_of_all_exchanges(seed: int, share: float) -> None:
    """Of all sets of weights the one of the smallest; then the largest gradients of the groups that lost them."""
    weight = patterned((3, 8), 1, NMPattern(2, 4), seed)
    weight.gradient = torch.randn(24, generator=torch.Generator().manual_seed(seed))
    ((slots, grown),) = RigL(10**9, drop_fraction=share).plan([weight], 0, torch.Generator())
    count = round(share * 12)
    active, inactive = weight.indices.tolist(), weight.inactive_indices().tolist()
    size = weight.values.detach().abs()
    least = min(float(size[list(chosen)].sum()) for chosen in itertools.combinations(range(12), count))
    assert len(slots) == count
    assert float(size[slots].sum()) == pytest.approx(least)
    lost = groups_of([active[s] for s in slots])
    choices = [c for c in itertools.combinations(inactive, count) if groups_of(list(c)) == lost]
    best = max(choices, key=lambda c: sum(abs(float(weight.gradient[i])) for i in c))  # type: ignore[index]
    assert sorted(grown.tolist()) == sorted(best)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_bidst_in_groups_gains_the_most_of_all_exchanges(seed: int, share: float) -> None:
    """With a share of 1 that is the mask of the N largest scores of each group."""
    weight = patterned((2, 8), 1, NMPattern(2, 4), seed)
    rule = BiDST(10**9, drop_fraction=share, candidates=1.0)
    rule.begin(weight)
    generator = torch.Generator().manual_seed(seed)
    weight.gradient = torch.randn(16, generator=generator)
    rule.observe(weight, 1, Pace(0.0, False, 0.0))
    weight.memory["dormant"] = torch.randn(8, generator=generator)
    active, (_, dormant) = rule.drop_scores(weight), rule.grow_scores(weight, generator)
    score = torch.zeros(16)
    score[weight.long_indices], score[weight.memory["candidates"]] = active, dormant
    possible = [
        float(score.view(4, 4)[torch.arange(4)[:, None], torch.tensor(pairs)].sum())
        for pairs in itertools.product(list(itertools.combinations(range(4), 2)), repeat=4)
        if sum(g * 4 + i not in weight.indices for g, two in enumerate(pairs) for i in two) <= round(share * 8)
    ]
    ((slots, indices),) = rule.plan([weight], 0, torch.Generator())
    rule.before_exchange(weight, slots, indices)
    weight.swap(slots, indices)
    assert counts(weight, 1).tolist() == [2] * 4
    assert float(score[weight.long_indices].sum()) == pytest.approx(max(possible), abs=1e-5)
    if share == 1.0:
        assert weight.mask().nonzero().flatten().tolist() == weight.groups.best(score).tolist()  # type: ignore[union-attr]


@EVERYWHERE
@pytest.mark.parametrize("pattern", [NMPattern(2, 4), NMPattern(4, 8)], ids=str)
@pytest.mark.parametrize("topology", ["bidst", "rigl", "set", "mest"])
def test_every_group_has_n_after_every_step(
    topology: str, pattern: NMPattern, shape: tuple[int, ...], axis: int
) -> None:
    weight = patterned(shape, axis, pattern, 3)
    if axis == 0:
        weight.input_dim = 0
    elif len(shape) == 3 and axis == 2:
        weight.set_expert_layout(inputs_first=False)
    rule = SPARSITY.row(topology).implementation(total_steps=60, update_interval=3)
    masks = [weight.mask()]

    def check(_: Any) -> None:
        assert counts(weight, axis).unique().tolist() == [pattern.kept]
        masks.append(weight.mask())

    training = train({"w": weight}, rule, 60, each_step=check)
    assert training.report()["mask_updates"] >= 5
    assert not torch.equal(masks[0], masks[-1])


@pytest.mark.parametrize(("topology", "least"), [("bidst", 0.95), ("rigl", 0.85), ("set", 0.75), ("mest", 0.75)])
def test_topologies_find_a_planted_pattern(topology: str, least: float) -> None:
    """One of each four inputs of an output; a static random mask has a quarter of them."""
    assert recover(topology, 0, pattern=NMPattern(1, 4)) > least


def test_gmp_leaves_each_group_its_n_largest() -> None:
    shape, pattern = (5, 8), NMPattern(2, 4)
    weight = patterned(shape, 1, pattern, 0, more=20)
    weight.budget = 20
    fewest = []
    rule = GMP(total_steps=40, update_interval=5)
    train({"w": weight}, rule, 40, each_step=lambda _: fewest.append(int(counts(weight, 1).min())))
    assert min(fewest) == 2
    assert counts(weight, 1).tolist() == [2] * 10
    again = patterned(shape, 1, pattern, 0, more=20)
    again.budget = 20
    whole = torch.zeros(40).index_put_((again.long_indices,), again.values.detach().abs())
    ((slots, _),) = GMP(total_steps=10).plan([again], 9, torch.Generator())
    stays = sorted(set(again.indices.tolist()) - set(again.indices[slots].tolist()))
    assert stays == Groups.along(pattern, shape, 1).best(whole).tolist()


def test_a_pattern_that_is_none_is_refused() -> None:
    for wrong in ("2/4", "4:2", "0:4", "4:4", "2:4:8", "-1:4", "²:4", 2, None, ["2:4"], "2:4\n"):
        with pytest.raises(ValueError, match=r"pattern=.* is out of range; expected 'N:M'"):
            NMPattern.parse(wrong)
    assert str(NMPattern.parse("02:4")) == "2:4"
    assert NMPattern(4, 8).sparsity == 0.5


def test_indices_that_break_the_pattern_are_refused_wherever_they_come_from() -> None:
    weight = patterned((4, 8), 1, NMPattern(2, 4), 0)
    broken = weight.indices.clone()
    broken[0] = int(weight.inactive_indices()[weight.inactive_indices() // 4 != broken[0] // 4][0])
    with pytest.raises(ValueError, match=r"layer: the indices .* has 1 active weights, expected 2 by pattern '2:4'"):
        weight.check(broken, "layer")
    with pytest.raises(ValueError, match="expected 2 by pattern"):
        weight.load_state_dict({"values": weight.values.detach(), "indices": broken})
    weight.indices = broken
    with pytest.raises(ValueError, match="expected 2 by pattern"):
        weight.dense()
