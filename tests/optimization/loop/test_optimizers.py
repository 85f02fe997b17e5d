"""The torch optimizers by themselves: where the weights stand, failed steps, BatchNorm, memory of masks."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_efficient import S2SAM, SAM, ZOSAM, LookSAM, recalibrate_batch_norm
from hf_efficient.active_mask import set_active_mask
from tests.optimization.loop.loops import CLASSES, batch, network, same, step, values


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
def test_batch_norm_counts_one_pass_a_step(cls: Any) -> None:
    net = network(batch_norm=True)
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    for number in range(3):
        step(net, opt, number)
    assert net[1].num_batches_tracked == 3
    assert net[1].track_running_stats


@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # torch says it wherever a hook is
@pytest.mark.parametrize("cls", CLASSES)
def test_batch_norm_of_a_compiled_model_counts_one_pass_a_step(cls: Any) -> None:
    net = network(batch_norm=True)
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    compiled: Any = torch.compile(net, backend="eager")
    for number in range(3):
        step(compiled, opt, number)
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


def test_errors_name_the_fix() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"rho=-1"):
        S2SAM(net.parameters(), rho=-1)
    for rho in ("0.1", None, torch.ones(2)):
        with pytest.raises(ValueError, match=r"rho=.* is out of range; expected a finite number >= 0, or a function"):
            S2SAM(net.parameters(), rho=rho)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"merged='lora' is not a model; expected what get_peft_model"):
        S2SAM(net.parameters(), merged="lora")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"opt\.perturb\(lambda"):
        ZOSAM(net.parameters()).perturb()
    for cls in (S2SAM, SAM):
        with pytest.raises(TypeError, match=r"a Tensor cannot be called; expected .*lambda"):
            cls(net.parameters()).perturb(torch.ones(()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"delta=0\.1 is read only with guided=False"):
        ZOSAM(net.parameters(), guided=True, delta=0.1)
    with pytest.raises(ValueError, match="num_queries=0"):
        ZOSAM(net.parameters(), num_queries=0)
    with pytest.raises(ValueError, match="reuse_interval=0"):
        LookSAM(net.parameters(), reuse_interval=0)
    with pytest.raises(ValueError, match="SAMTrainer"):
        SAM(net.parameters()).step()


def test_rho_may_be_a_function_of_the_step() -> None:
    net = network(batch_norm=True)
    opt = S2SAM(net.parameters(), torch.optim.SGD, rho=lambda t: 0.5 / (t + 1), lr=0.1)
    step(net, opt, 0)
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    opt.perturb()
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    "rho", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5])]
)
def test_rho_may_be_any_number_and_files_hold_a_plain_one(rho: Any, tmp_path: Path) -> None:
    net = network()
    opt = S2SAM(net.parameters(), torch.optim.SGD, rho=rho, lr=0.0)
    step(net, opt, 0)
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    opt.perturb()
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)
    step(net, opt, 1)
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        S2SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.0).load_state_dict(torch.load(tmp_path / "state.pt"))


@pytest.mark.parametrize("said", [-1.0, float("nan"), float("inf"), "far", None])
def test_a_function_of_the_step_that_says_no_distance_moves_nothing(said: Any) -> None:
    net = network()
    opt = S2SAM(net.parameters(), torch.optim.SGD, rho=lambda t: said if t else 0.5, lr=0.1)
    step(net, opt, 0)
    before = values(net)
    with pytest.raises(ValueError, match=r"rho\(1\)=.* is out of range; expected a finite number >= 0"):
        opt.perturb()
    assert same(values(net), before)


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
