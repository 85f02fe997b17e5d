"""Deltas to general networks: coded without loss, restored as they were trained."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_efficient.video.networks.delta import OVER_FIRST, Delta, changed, pack_delta, parts, quantized, unpack_delta
from hf_efficient.video.networks.general import find_general, general_network, general_networks
from hf_efficient.video.networks.level_coding import MOST, decode_levels, encode_levels
from hf_efficient.video.networks.spec import GENERAL_WIDTHS


def test_levels_come_back_and_cost_about_their_entropy() -> None:
    rng = np.random.default_rng(0)
    few, zeros, many = (np.rint(rng.laplace(0, 0.3, 3000)), np.zeros((7, 5)), rng.integers(-MOST, MOST + 1, 50))
    tensors = [("weight", few.astype(int)), ("weight", zeros.astype(int)), ("bias", many)]
    data = encode_levels(tensors)
    back = decode_levels(data, [(kind, levels.size) for kind, levels in tensors])
    assert all(np.array_equal(found, levels.ravel()) for found, (_, levels) in zip(back, tensors, strict=True))
    share = np.unique(few, return_counts=True)[1] / few.size
    entropy = -(share * np.log2(share)).sum() * few.size / 8
    assert entropy < len(encode_levels(tensors[:1])) < 1.1 * entropy + 16
    assert len(encode_levels(tensors[:2])) <= len(encode_levels(tensors[:1])) + 4  # zeros: one bit, in whole words
    assert encode_levels([("weight", zeros.astype(int))]) == b""


def test_levels_out_of_range_and_damaged_bytes_are_refused_or_numbers() -> None:
    with pytest.raises(ValueError, match="A level of 128"):
        encode_levels([("weight", np.array([128]))])
    rng = np.random.default_rng(0)
    for _ in range(200):
        try:
            (levels,) = decode_levels(rng.bytes(int(rng.integers(1, 40))), [("weight", 100)])
        except ValueError:
            continue
        assert np.abs(levels).max() <= MOST


def test_quantized_has_a_dead_zone_and_the_gradient_of_its_input() -> None:
    x = torch.tensor([-1.7, -0.6, 0.0, 0.64, 0.66, 1.6, 300.0], requires_grad=True)
    q = quantized(x)
    torch.testing.assert_close(q, torch.tensor([-2.0, 0, 0, 0, 1, 1, MOST]))
    q.sum().backward()
    assert x.grad is not None
    assert (x.grad == 1).all()


@pytest.mark.parametrize("weights", [True, False])
def test_what_is_unpacked_computes_what_was_trained(weights: bool) -> None:
    general = general_network(2, 8)
    delta, x = Delta(general.load(), weights, fineness=1), torch.rand(1, 3, 16, 18)
    assert torch.equal(delta(x), general.load()(x))
    torch.manual_seed(0)
    with torch.no_grad():
        for change in delta.changes:
            change.add_(0.02 * torch.randn_like(change))
    data, restored = pack_delta([general.load()], [delta.levels()], 1), general.load()
    unpack_delta(data, [restored])
    assert torch.equal(restored(x), delta(x))
    assert not torch.equal(restored(x), general.load()(x))
    kinds = [kind for kind, *_ in parts(general.load())]
    moved = {kind for kind, q in zip(kinds, delta.levels(), strict=True) if q.any()}
    assert moved == ({"scale", "weight", "bias"} if weights else {"scale", "bias"})


@pytest.mark.parametrize("alike", [True, False])
def test_several_networks_are_coded_over_the_first_where_that_is_shorter(alike: bool) -> None:
    general, rng = general_network(2, 8), np.random.default_rng(0)
    sizes = [q.shape for q in Delta(general.load()).levels()]
    first = [rng.integers(-9, 10, size) for size in sizes]
    more = [q + (rng.random(q.shape) < 0.02) if alike else rng.integers(-1, 2, q.shape) for q in first]
    data = pack_delta([general.load()] * 2, [first, more], 0)
    assert bool(data[0] & OVER_FIRST) == alike
    restored = [general.load(), general.load()]
    unpack_delta(data, restored)
    for levels, net in zip((first, more), restored, strict=True):
        alone = general.load()
        unpack_delta(pack_delta([general.load()], [levels], 0), [alone])
        assert all(map(torch.equal, alone.state_dict().values(), net.state_dict().values()))


def test_what_is_known_costs_no_bits() -> None:
    delta = Delta(general_network(2, 8).load())
    known = [np.full(q.shape, 3) for q in delta.levels()]
    count = sum(q.size for q in known)
    assert float(delta.bits(known).detach()) == pytest.approx(2 * count)  # log2(1 + 3) each
    with torch.no_grad():
        for change, step in zip(delta.changes, delta.steps, strict=True):
            change.add_(3 * step)
    assert float(delta.bits(known).detach()) == pytest.approx(0, abs=1e-2)


def test_a_change_is_what_the_formula_says() -> None:
    """W = W0 (1 + h q) + h' q', by hand for one layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    layer = net[0]
    assert isinstance(layer, nn.Conv2d)
    scale, weight, bias = torch.tensor([3.0, -1.0]), torch.randint(-2, 3, (2, 1, 3, 3)).float(), torch.tensor([5.0, 0])
    result = changed(net, [scale, weight, bias], [0.1, 0.01, 0.5])
    expected = layer.weight * torch.tensor([1.3, 0.9])[:, None, None, None] + 0.01 * weight
    torch.testing.assert_close(result["0.weight"], expected)
    assert layer.bias is not None
    torch.testing.assert_close(result["0.bias"], layer.bias.detach() + torch.tensor([2.5, 0]))


def test_general_networks_are_found_by_scale_and_by_digest() -> None:
    assert {(g.spec.scale, g.spec.num_features) for g in general_networks()} == {
        (s, w) for s, widths in GENERAL_WIDTHS.items() for w in widths
    }
    assert sum(g.path.stat().st_size for g in general_networks()) < 300_000
    for general in general_networks():
        assert find_general(general.digest) is general
    with pytest.raises(ValueError, match="does not have"):
        find_general("0" * 32)
    with pytest.raises(ValueError, match="num_features=12"):
        general_network(2, 12)
