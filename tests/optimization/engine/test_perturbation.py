"""Weights move by exactly rho and come back to the bit, whatever happens in between."""

import pytest
import torch
from torch import Tensor, nn

from hf_efficient.active_mask import set_active_mask
from hf_efficient.optimization.engine.perturbation import Weights, dot, global_norm
from hf_efficient.optimization.variants.asam import asam_scaling


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((40, 30), (30,), (5, 4, 3))]


def directions(params: list[nn.Parameter]) -> dict[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {p: torch.randn(p.shape, generator=generator).to(p.dtype) for p in params}


def bits(params: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone().view(torch.int32 if p.dtype.itemsize == 4 else torch.int16) for p in params]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_to_the_bit(dtype: torch.dtype, masked: bool) -> None:
    params = parameters(dtype)
    with torch.no_grad():
        params[0][0, :3] = torch.tensor([0.0, -0.0, 6e-8])  # the sign of a zero and a subnormal number count too
    if masked:
        set_active_mask(params[0], torch.rand(40, 30) < 0.3)
    before, weights = bits(params), Weights(params)
    for _ in range(20):
        with weights.moved(weights.pack(directions(params)), 3.0):
            assert not torch.equal(bits(params)[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(bits(params), before))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_weights_come_back_after_an_exception(error: type[BaseException]) -> None:
    params = parameters()
    before, weights = bits(params), Weights(params)
    with pytest.raises(error), weights.moved(directions(params), 3.0):
        raise error
    assert all(torch.equal(a, b) for a, b in zip(bits(params), before))


def test_distance_is_rho_over_all_parameters_together() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    with Weights(params).moved(directions(params), 0.7):
        moved = torch.cat([(p - b).flatten() for p, b in zip(params, before)])
    assert moved.norm().item() == pytest.approx(0.7, rel=1e-5)


def test_adaptive_distance_is_in_units_of_the_weights() -> None:
    params = parameters()
    before, d = [p.detach().clone() for p in params], directions(params)
    with Weights(params, asam_scaling).moved(d, 0.7):
        relative = torch.cat([((p - b) / b).flatten() for p, b in zip(params, before)])
    assert relative.norm().item() == pytest.approx(0.7, rel=1e-4)
    scaled = torch.cat([(b.square() * d[p]).flatten() for p, b in zip(params, before)])
    moved = relative * torch.cat([b.flatten() for b in before])
    torch.testing.assert_close(moved / moved.norm(), scaled / scaled.norm(), atol=1e-5, rtol=0)


def test_dead_entries_are_left_alone_and_do_not_count_for_the_distance() -> None:
    params = parameters()
    mask = torch.rand(params[0].shape, generator=torch.Generator().manual_seed(2)) < 0.1
    set_active_mask(params[0], mask)
    before = params[0].detach().clone()
    weights = Weights(params[:1])
    with weights.moved(weights.pack(directions(params[:1])), 0.7):
        moved = params[0] - before
    assert (moved[~mask] == 0).all()
    assert moved[mask].norm().item() == pytest.approx(0.7, rel=1e-5)
    everything = Weights(params[:1], active_only=False)
    with everything.moved(everything.pack(directions(params[:1])), 0.7):
        assert (params[0] != before).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_direction_that_is_zero_or_not_finite_moves_nothing(value: float) -> None:
    params = parameters()
    before = bits(params)
    with Weights(params).moved({p: torch.full_like(p, value) for p in params}, 0.7):
        assert all(torch.equal(a, b) for a, b in zip(bits(params), before))


@pytest.mark.parametrize(("rho", "adaptive", "warns"), [(0.05, False, True), (5.0, False, False), (5.0, True, False)])
def test_what_sixteen_bits_swallow_is_said(rho: float, adaptive: bool, warns: bool) -> None:
    """bfloat16 has eight bits: 1,290 weights of size one that move by 0.0014 each mostly do not move."""
    params = parameters(torch.bfloat16)
    weights = Weights(params, asam_scaling if adaptive else None)
    with weights.moved(directions(params), rho, measure=True):
        for p in params:
            p.grad = torch.ones_like(p)
    assert (weights.lost_to_rounding() is not None) == warns
    wide = Weights(parameters(), asam_scaling if adaptive else None)
    with wide.moved(directions(wide.parameters), rho, measure=True):  # type: ignore[arg-type]
        pass
    assert wide.lost_to_rounding() is None


def test_frozen_and_shared_parameters() -> None:
    params = parameters()
    params[1].requires_grad_(False)
    assert [p.shape for p in Weights([*params, params[0]]).parameters] == [params[0].shape, params[2].shape]


def test_norms_and_products_are_taken_wide_enough() -> None:
    small = torch.full((1000,), 1e-4, dtype=torch.float16)  # its square is 0 in float16
    p, q = nn.Parameter(torch.zeros(1000)), nn.Parameter(torch.zeros(2))
    direction: dict[Tensor, Tensor] = {p: small, q: torch.tensor([3.0, 4.0], dtype=torch.float64)}
    expected = 25 + small.double().square().sum().item()
    assert global_norm(direction) ** 2 == pytest.approx(expected, rel=1e-6)
    assert dot(direction, direction) == pytest.approx(expected, rel=1e-6)


def test_a_packed_direction_unpacks_to_zeros_elsewhere() -> None:
    params = parameters()
    mask = torch.rand(params[0].shape) < 0.2
    set_active_mask(params[0], mask)
    weights, d = Weights(params), directions(params)
    packed = weights.pack(d)
    assert packed[params[0]].numel() == mask.sum()
    assert packed[params[1]] is d[params[1]]
    torch.testing.assert_close(weights.unpack(packed)[params[0]], d[params[0]] * mask)
