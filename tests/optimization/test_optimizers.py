"""The torch optimizers in plain loops: schedulers, state, scalers, failed steps, BatchNorm, memory of masks."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_efficient import MSAM, S2SAM, SAM, ZOSAM, LookSAM, recalibrate_batch_norm
from hf_efficient.optimization.perturbing_optimizer import PerturbingOptimizer
from hf_efficient.sparsity.active import set_active_mask

CLASSES: list[type[PerturbingOptimizer]] = [S2SAM, SAM, ZOSAM, LookSAM, MSAM]


def network(batch_norm: bool = False) -> Any:
    torch.manual_seed(0)
    middle: nn.Module = nn.BatchNorm1d(16) if batch_norm else nn.Dropout(0.3)
    return nn.Sequential(nn.Linear(8, 16), middle, nn.ReLU(), nn.Linear(16, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(12, 8, generator=generator), torch.randint(0, 3, (12,), generator=generator)


def step(net: nn.Module, opt: Any, number: int, spoil: float = 1.0) -> None:
    x, y = batch(number)
    loss = lambda: nn.functional.cross_entropy(net(x * spoil), y)
    if isinstance(opt, PerturbingOptimizer):
        opt.perturb(loss)
    loss().backward()
    opt.step()
    opt.zero_grad()


def values(net: nn.Module) -> list[Tensor]:
    return [v.detach().clone() for v in net.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("cls", CLASSES)
def test_rho_zero_is_the_base_optimizer_to_the_bit(cls: Any) -> None:
    net, twin = network(), network()
    opt, plain = cls(net.parameters(), rho=0.0, lr=1e-2), torch.optim.AdamW(twin.parameters(), lr=1e-2)
    for number in range(5):
        for each, of in ((net, opt), (twin, plain)):
            torch.manual_seed(number)  # the same dropout
            step(each, of, number)
    assert same(values(net), values(twin))


@pytest.mark.parametrize("cls", CLASSES)
def test_weights_are_elsewhere_only_between_perturb_and_step(cls: Any) -> None:
    net = network()
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    for number in range(5):  # so that LookSAM stands before a full step
        step(net, opt, number)
    before = values(net)
    x, y = batch(5)
    loss = lambda: nn.functional.cross_entropy(net(x), y)
    opt.perturb(loss)
    assert not same(values(net), before)
    opt.eval()
    assert same(values(net), before)
    with pytest.raises(KeyboardInterrupt), opt.perturb(loss):
        raise KeyboardInterrupt
    assert same(values(net), before)
    opt.perturb(loss)
    opt.state_dict()
    assert same(values(net), before)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(cls: Any, spoil: float) -> None:
    net, twin = network(), network()
    opt, other = (
        cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9),
        cls(twin.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9),
    )
    for number in range(4):
        for each, of, bad in ((net, opt, True), (twin, other, False)):
            if bad and number == 2:
                step(each, of, 99, spoil)
            torch.manual_seed(number)
            step(each, of, number)
    assert same(values(net), values(twin))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_state_dict_continues_to_the_bit_and_loads_without_pickle(cls: Any, base: Any) -> None:
    net = network()
    kwargs = {"lr": 0.01, "momentum": 0.9} if base is torch.optim.SGD else {"lr": 0.01}
    opt = cls(net.parameters(), base, **kwargs)
    for number in range(3):
        step(net, opt, number)
    stored = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=True)
    twin = network()
    twin.load_state_dict(loaded["net"])
    other = cls(twin.parameters(), base, **kwargs)
    other.load_state_dict(loaded["opt"])
    for each, of in ((net, opt), (twin, other)):
        torch.manual_seed(7)
        step(each, of, 3)
    assert same(values(net), values(twin))
    assert other.param_groups is other.base.param_groups
    assert other.state is other.base.state


def test_scheduler_sees_the_real_groups() -> None:
    net = network()
    opt = S2SAM([{"params": net[0].parameters(), "lr": 1.0}, {"params": net[3].parameters()}], torch.optim.SGD, lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.0)
    before = values(net)
    step(net, opt, 0)
    scheduler.step()
    assert [g["lr"] for g in opt.base.param_groups] == [0.0, 0.0]
    assert same(values(net), before)  # and the rate was 0 in the base optimizer
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 3.0})
    assert opt.base.param_groups[2]["lr"] == 3.0


def test_zeroing_gradients_in_place_does_not_lose_the_direction() -> None:
    net = network()
    opt = S2SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    x, y = batch(0)
    nn.functional.cross_entropy(net(x), y).backward()
    opt.perturb()
    opt.step()
    opt.zero_grad(set_to_none=False)
    before = values(net)
    opt.perturb()
    assert not same(values(net), before)


@pytest.mark.parametrize("cls", CLASSES)
def test_grad_scaler_that_skips_a_step_leaves_the_weights_in_place(cls: Any) -> None:
    net = network()
    opt, scaler = (
        cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9),
        torch.amp.GradScaler("cpu", init_scale=8.0),
    )
    history = [values(net)]
    for number, spoil in enumerate((1.0, float("inf"), 1.0)):
        x, y = batch(number)
        loss = lambda: nn.functional.cross_entropy(net(x), y)
        opt.perturb(loss)
        scaler.scale(loss() * spoil).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        history.append(values(net))
    assert not same(history[0], history[1])
    assert same(history[1], history[2])
    assert not same(history[2], history[3])
    assert scaler.get_scale() == 4.0


def test_scaled_gradients_give_the_same_steps() -> None:
    net = network(batch_norm=True)
    twin = copy.deepcopy(net)
    opt = S2SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    other, scaler = S2SAM(twin.parameters(), torch.optim.SGD, lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(5):
        step(net, opt, number)
        x, y = batch(number)
        other.perturb()
        scaler.scale(nn.functional.cross_entropy(twin(x), y)).backward()
        scaler.step(other)
        scaler.update()
        other.zero_grad()
    for a, b in zip(values(net), values(twin)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cls", CLASSES)
def test_batch_norm_counts_one_pass_a_step(cls: Any) -> None:
    net = network(batch_norm=True)
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    for number in range(3):
        step(net, opt, number)
    assert net[1].num_batches_tracked == 3
    assert net[1].track_running_stats


def test_recalibrated_statistics_are_the_means_over_the_batches() -> None:
    net = network(batch_norm=True)
    opt = S2SAM(net.parameters(), torch.optim.SGD, rho=2.0, lr=0.1)
    for number in range(3):
        step(net, opt, number)
    batches = [batch(number)[0] for number in range(4)]
    recalibrate_batch_norm(net, batches)
    inner = torch.stack([net[0](x).mean(0) for x in batches]).mean(0)
    torch.testing.assert_close(net[1].running_mean, inner)
    assert net[1].momentum == 0.1
    assert net.training
    with pytest.raises(ValueError, match="No batch"):
        recalibrate_batch_norm(net, [])


def test_entries_that_grow_are_moved_from_their_first_step_on() -> None:
    """A mask changed in place between two steps: the remembered gradient is restricted to what lives now."""
    net = nn.Linear(8, 3)
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[:, :4] = True
    set_active_mask(net.weight, mask)
    opt = S2SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    step(net, opt, 0)
    mask[:, :4], mask[:, 4:] = False, True
    before = net.weight.detach().clone()
    opt.perturb()
    moved = net.weight - before
    assert (moved[:, :4] == 0).all()
    assert (moved[:, 4:] != 0).any()


def test_first_step_of_s2sam_is_the_base_optimizer_step() -> None:
    net, twin = network(batch_norm=True), network(batch_norm=True)
    step(net, S2SAM(net.parameters(), torch.optim.SGD, rho=1.0, lr=0.1), 0)
    step(twin, torch.optim.SGD(twin.parameters(), lr=0.1), 0)
    assert same(values(net), values(twin))


def test_random_numbers_of_the_loop_are_not_consumed_by_probes() -> None:
    net = network()
    opt = ZOSAM(net.parameters(), torch.optim.SGD, lr=0.1, num_queries=4)
    torch.manual_seed(0)
    step(net, opt, 0)
    after = torch.rand(1)
    torch.manual_seed(0)
    net(batch(0)[0])
    assert after == torch.rand(1)


def test_errors_name_the_fix() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"rho=-1"):
        S2SAM(net.parameters(), rho=-1)
    with pytest.raises(ValueError, match=r"opt\.perturb\(lambda"):
        ZOSAM(net.parameters()).perturb()
    with pytest.raises(ValueError, match="SAMTrainer"):
        SAM(net.parameters()).step()
    with pytest.raises(ValueError, match="no closure"):
        S2SAM(net.parameters()).step(lambda: 0.0)


def test_rho_may_be_a_function_of_the_step() -> None:
    net = network(batch_norm=True)
    opt = S2SAM(net.parameters(), torch.optim.SGD, rho=lambda t: 0.5 / (t + 1), lr=0.1)
    step(net, opt, 0)
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    opt.perturb()
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-4)


def test_what_a_topology_forgets_is_forgotten_here_too() -> None:
    """Between step and zero_grad, gradients of entries that came alive are zeroed in place; they are not moved next."""
    net = network(batch_norm=True)
    opt = S2SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    x, y = batch(0)
    opt.perturb()
    nn.functional.cross_entropy(net(x), y).backward()
    opt.step()
    with torch.no_grad():
        net[0].weight.grad[:4] = 0.0
    opt.zero_grad()
    before = net[0].weight.detach().clone()
    opt.perturb()
    moved = net[0].weight - before
    assert (moved[:4] == 0).all()
    assert (moved[4:] != 0).any()
