"""The torch optimizers among what loops have: schedulers, saved state, scalers, 16-bit weights, accelerate."""

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_efficient import S2SAM, ZOSAM
from tests.optimization.loop.loops import CLASSES, batch, network, same, step, values


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
    opt.perturb()
    nn.functional.cross_entropy(net(x), y).backward()
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


def test_random_numbers_of_the_loop_are_not_consumed_by_probes() -> None:
    net = network()
    opt = ZOSAM(net.parameters(), torch.optim.SGD, lr=0.1, num_queries=4)
    torch.manual_seed(0)
    step(net, opt, 0)
    after = torch.rand(1)
    torch.manual_seed(0)
    net(batch(0)[0])
    assert after == torch.rand(1)


def accelerated(folder: Any, count: int, accelerator: Any) -> list[Tensor]:
    """Weights after `count` micro-batches, two of which are a step; the state is saved and loaded in the middle."""
    net = network(batch_norm=True)
    opt = S2SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, momentum=0.9)
    net, opt = accelerator.prepare(net, opt)
    for number in range(count):
        x, y = batch(number)
        opt.train()
        with accelerator.accumulate(net):
            accelerator.backward(nn.functional.cross_entropy(net(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), 0.5)
            opt.step()
            opt.zero_grad()
        if number == 3:
            accelerator.save_state(folder)
            with torch.no_grad():
                for p in net.parameters():
                    p.zero_()
            accelerator.load_state(folder)
    return values(net)


def test_accelerate(tmp_path: Any) -> None:
    from accelerate import Accelerator

    found = accelerated(str(tmp_path), 8, Accelerator(cpu=True, gradient_accumulation_steps=2))
    net = network(batch_norm=True)
    opt = S2SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, momentum=0.9)
    for number in range(0, 8, 2):
        with opt.perturb():
            for x, y in (batch(number), batch(number + 1)):
                (nn.functional.cross_entropy(net(x), y) / 2).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        opt.step()
        opt.zero_grad()
    for a, b in zip(found, values(net)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_weights_of_sixteen_bits_warn_once() -> None:
    net = network(batch_norm=True).bfloat16()
    opt = S2SAM(net.parameters(), torch.optim.SGD, rho=1e-3, lr=0.1)

    def run(number: int) -> None:
        x, y = batch(number)
        opt.perturb()
        nn.functional.cross_entropy(net(x.bfloat16()), y).backward()
        opt.step()
        opt.zero_grad()

    run(0)
    with pytest.warns(UserWarning, match="16-bit weights moved by .* torch.autocast"):
        run(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(2)


@pytest.mark.parametrize("cls", CLASSES)
def test_all_may_stand_in_an_autocast_block(cls: Any) -> None:
    net = network()
    net[1] = nn.Identity()
    opt = cls(net.parameters(), torch.optim.SGD, rho=1.0, lr=0.1, momentum=0.9)
    for number in range(2):
        x, y = batch(number)
        loss_of = lambda: nn.functional.cross_entropy(net(x), y)
        with torch.autocast("cpu", torch.bfloat16):
            opt.perturb(loss_of)
            loss = loss_of()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss, loss_of())  # at the weights as they are, not at 16-bit copies from before
        loss.backward()
        opt.step()
        opt.zero_grad()


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not ZOSAM])  # whose random directions differ
def test_complex_weights_are_pairs_of_real_ones(cls: Any) -> None:
    torch.manual_seed(0)
    start, data = torch.randn(4, 3, dtype=torch.cfloat), torch.randn(3, 5, dtype=torch.cfloat)
    ends = []
    for pairs in (False, True):
        w = nn.Parameter(torch.view_as_real(start).clone() if pairs else start.clone())
        opt = cls([w], torch.optim.SGD, rho=0.3, lr=0.01, momentum=0.9)
        for _ in range(4):
            loss_of = lambda: ((torch.view_as_complex(w) if pairs else w) @ data - 1).abs().pow(3).sum()
            opt.perturb(loss_of)
            loss_of().backward()
            opt.step()
            opt.zero_grad()
        ends.append(w.detach() if pairs else torch.view_as_real(w.detach()))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)
