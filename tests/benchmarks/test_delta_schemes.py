"""Others' ways to send a change of a network: what is counted, what may move, what a player would restore."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.video.delta_schemes import (
    LowRank,
    Part,
    cafm,
    cafm_of_general,
    emt,
    low_rank,
    masks,
    patch_luma_errors,
    position_bytes,
    replaced_in_turn,
    sparse,
    srvc,
    stretch_stores,
    stretches,
)
from hf_efficient.video.encode.overfit import Recipe
from hf_efficient.video.networks.delta import Delta, parts
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.weights import stored_bytes

GENERAL = general_network(2, 8)
RECIPE = Recipe(steps=8, batch_size=2, learning_rate=0.01, trim=True)


class Noise:
    """Patches of noise with the context that the general network sees."""

    def __len__(self) -> int:
        return 12

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        chance = torch.Generator().manual_seed(int(indices[0]))
        return torch.rand(len(indices), 3, 20, 20, generator=chance), torch.rand(len(indices), 3, 16, 16)


def weights(net: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize(("chosen", "of"), [(2, 4), (0, 9), (3, 200)])
def test_positions_cost_the_logarithm_of_their_number(chosen: int, of: int) -> None:
    assert position_bytes(chosen, of) == pytest.approx(math.log2(math.comb(of, chosen)) / 8, abs=1e-9)


def test_stretches_are_equal_in_time() -> None:
    frames = np.array([0, 0, 3, 4, 5, 9])
    assert [part.tolist() for part in stretches(frames, 10, 2)] == [[0, 1, 2, 3], [4, 5]]
    store = stretch_stores(Noise(), frames, 10, 2)[1]
    assert len(store) == 2
    assert torch.equal(store.batch(np.array([1]))[0], Noise().batch(np.array([5]))[0])


def test_a_low_rank_is_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = GENERAL.load()
    untrained = LowRank(base, 2)
    assert not untrained.packed()  # rows of columns that are zero are not sent
    size, (net,) = low_rank(base, 2, Noise(), RECIPE, tmp_path, lambda net: net.bits() * 0)  # type: ignore[operator]
    assert isinstance(net, LowRank)
    assert size == len(net.packed()) > 0
    scale = 1 + net.rest.steps[0] * torch.from_numpy(net.rest.levels()[0]).float()
    first, trained = next(iter(base.named_parameters()))[0], dict(net.weights())
    change = trained[first] - dict(base.named_parameters())[first] * scale[:, None, None, None]
    assert torch.linalg.matrix_rank(change.flatten(1), rtol=1e-3) <= 2


def test_few_weights_are_few(tmp_path: Path) -> None:
    base = GENERAL.load()
    kinds = [kind for kind, *_ in parts(base)]
    ratios = [torch.randn(t.shape if k != "scale" else t.shape[:1]) for k, t, _ in parts(base)]
    kept = masks(ratios, kinds, 0.05)
    single = [m for m, k in zip(kept, kinds, strict=True) if k == "weight"]
    assert sum(int(m.sum()) for m in single) == round(0.05 * sum(m.numel() for m in single))
    size, (net,) = sparse(base, 0.05, Noise(), RECIPE, tmp_path)
    assert isinstance(net, Delta)
    moved = [np.count_nonzero(q) for q, k in zip(net.levels(), kinds, strict=True) if k == "weight"]
    assert 0 < sum(moved) <= round(0.05 * sum(m.numel() for m in single))
    assert 0 < size < 2000


def test_a_stretch_replaces_a_share_of_the_one_before(tmp_path: Path) -> None:
    stores = stretch_stores(Noise(), np.arange(12), 12, 3)
    size, nets = srvc(GENERAL.load, 0.02, stores, RECIPE, tmp_path)
    total = len(weights(nets[0]))
    few = round(0.02 * total)
    before = weights(GENERAL.load())
    for net in nets:
        assert 0 < int((weights(net) != before).sum()) <= few
        before = weights(net)
    assert size == math.ceil(3 * (2 * few + position_bytes(few, total)))


class Flat(Noise):
    """Patches of one gray, which the general network enlarges well, but for two whose true frames are white."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        self.seen |= set(indices.tolist())
        gray = torch.tensor([0.5 if n not in (3, 8) else 1.0 for n in indices])[:, None, None, None]
        return torch.full((len(indices), 3, 20, 20), 0.5), gray.expand(-1, 3, 16, 16)


def test_errors_of_patches_are_those_of_luma() -> None:
    errors = patch_luma_errors(GENERAL.load(), Flat(), RECIPE)
    assert errors.shape == (12,)
    played = GENERAL.load()(torch.full((1, 3, 20, 20), 0.5), True)[0, :, 8:16, 8:16]
    red, green, blue = played.mean((1, 2)).tolist()
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    assert errors[3] == pytest.approx((1 - gray) ** 2, rel=1e-3)
    assert errors[0] == pytest.approx((0.5 - gray) ** 2, rel=1e-2, abs=1e-6)


def test_emt_trains_on_the_hardest_patches_of_each_stretch(tmp_path: Path) -> None:
    store, frames = Flat(), np.arange(12)
    stores = stretch_stores(store, frames, 12, 2)
    size, nets = emt(GENERAL.load, (0.05, 0.01), stores, RECIPE, tmp_path)
    assert store.seen == set(range(12))  # all are scored
    total, before = len(weights(nets[0])), weights(GENERAL.load())
    few = [round(share * total) for share in (0.05, 0.01)]
    for net, most in zip(nets, few, strict=True):
        assert 0 < int((weights(net) != before).sum()) <= most
        before = weights(net)
    assert size == math.ceil(sum(2 * n + position_bytes(n, total) for n in few))
    hard = replaced_in_turn(GENERAL.load, (0.05, 0.01), [Part(store, np.array([n])) for n in (3, 8)], RECIPE, tmp_path)
    for ours, only_hard in zip(nets, hard[1], strict=True):
        assert torch.equal(weights(ours), weights(only_hard))


def test_modulated_networks_differ_by_factors_alone(tmp_path: Path) -> None:
    stores = stretch_stores(Noise(), np.arange(12), 12, 2)
    size, nets = cafm(GENERAL.load, stores, RECIPE, tmp_path)
    channels = sum(layer.out_channels for layer in GENERAL.load().modules() if isinstance(layer, torch.nn.Conv2d))
    assert size == stored_bytes(GENERAL.load(), "int8") + 2 * 2 * channels
    first, second = (net.state_dict() for net in nets)
    assert torch.equal(first["head.weight"], second["head.weight"])  # 8 bits: a channel's factor is in its scale
    assert not torch.equal(first["head.weight_scale"], second["head.weight_scale"])
    size, bodies = cafm_of_general(GENERAL.load(), stores, RECIPE, tmp_path)
    assert 0 < size < 1000
    for net in bodies:
        assert isinstance(net, Delta)
        kinds = [kind for kind, *_ in parts(GENERAL.load())]
        assert [ratio is None for ratio in net.ratios()] == [kind == "weight" for kind in kinds]
