"""Weights lie elsewhere for the time of a step: nobody can tell afterwards, whatever they hold and however it ends."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_efficient import MSAM, S2SAM, SAM, ZOSAM
from hf_efficient.optimization.engine import exchange
from hf_efficient.optimization.engine.perturbation import Weights
from tests.optimization.loop.loops import CLASSES, same

SIDE = 130  # squared, in 4 bytes: more than exchange.LEAST


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIDE, SIDE), nn.Tanh(), nn.Linear(SIDE, SIDE), nn.Tanh(), nn.Linear(SIDE, 3))


def loss_of(net: nn.Module) -> Tensor:
    return net(torch.ones(4, SIDE).cumsum(0) / 10).square().sum()


def began(cls: Any = S2SAM, **kwargs: Any) -> tuple[Any, Any]:
    """A network and its optimizer after a step that changed no weight."""
    net = network()
    opt = cls(net.parameters(), torch.optim.SGD, rho=0.5, **{"lr": 0.0, **kwargs})
    step(net, opt)
    return net, opt


def step(net: nn.Module, opt: Any) -> None:
    opt.perturb(lambda: loss_of(net))
    loss_of(net).backward()
    opt.step()
    opt.zero_grad()


def bits(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def places(net: nn.Module) -> list[int]:
    return [p.data_ptr() for p in net.parameters()]


def raised(error: type[BaseException]) -> Callable[[Any, Any], None]:
    def leave(net: Any, opt: Any) -> None:
        with pytest.raises(error), opt.perturb():
            raise error

    return leave


def stepped(net: Any, opt: Any) -> None:
    loss_of(net).backward()
    opt.step()


def spoiled(net: Any, opt: Any) -> None:
    (loss_of(net) * float("nan")).backward()
    with pytest.warns(UserWarning, match="not finite"):
        opt.step()


def skipped(net: Any, opt: Any) -> None:
    """By a GradScaler, whose scale was too large."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    (scaler.scale(loss_of(net)) * 2.0**20).backward()
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 2.0**125


def failed(error: type[BaseException]) -> Callable[[Any, Any], None]:
    """The base optimizer's step raises before it changes anything."""

    def leave(net: Any, opt: Any) -> None:
        def fail(*_: Any) -> None:
            raise error

        loss_of(net).backward()
        handle = opt.base.register_step_pre_hook(fail)
        with pytest.raises(error):
            opt.step()
        handle.remove()

    return leave


def failed_closure(error: type[BaseException]) -> Callable[[Any, Any], None]:
    """`step(closure)`, as Lightning calls it."""

    def closure() -> Tensor:
        raise error

    def leave(net: Any, opt: Any) -> None:
        with pytest.raises(error):
            opt.step(closure)

    return leave


EXITS: dict[str, Callable[[Any, Any], Any]] = {
    "step": stepped,
    "a step that is not finite": spoiled,
    "a step that a scaler skips": skipped,
    "error of the optimizer": failed(RuntimeError),
    "Ctrl-C in the optimizer": failed(KeyboardInterrupt),
    "error in a closure": failed_closure(RuntimeError),
    "Ctrl-C in a closure": failed_closure(KeyboardInterrupt),
    "error": raised(RuntimeError),
    "Ctrl-C": raised(KeyboardInterrupt),
    "exit of the program": raised(SystemExit),
    "restore": lambda net, opt: opt.restore(),
    "eval": lambda net, opt: opt.eval(),
    "state_dict": lambda net, opt: opt.state_dict(),
    "load_state_dict": lambda net, opt: opt.load_state_dict(opt.state_dict()),
}


@pytest.mark.parametrize("exit", EXITS)
@pytest.mark.parametrize("cls", CLASSES)
def test_the_storage_of_the_weights_after_every_exit(cls: Any, exit: str) -> None:
    net, opt = began(cls, **({"momentum": 0.9} if cls is MSAM else {}))
    opt.variant.step = 5  # one in which LookSAM moves
    before, where = bits(net), places(net)
    opt.perturb(lambda: loss_of(net))
    assert not same(bits(net), before)
    assert [a == b for a, b in zip(places(net), where)] == [False, True, False, True, True, True]  # the large ones
    EXITS[exit](net, opt)
    assert same(bits(net), before)
    assert places(net) == where


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("calls", [1, 2])
def test_the_storage_after_a_loss_that_fails(calls: int, guided: bool, error: type[BaseException]) -> None:
    """ZO-SAM asks on both sides of the weights: they are elsewhere while the function runs."""
    net, opt = began(ZOSAM, guided=guided)
    before, where, seen = bits(net), places(net), []

    def loss() -> Tensor:
        seen.append(places(net))
        assert not same(bits(net), before)
        if len(seen) == calls:
            raise error
        return loss_of(net)

    with pytest.raises(error):
        opt.perturb(loss)
    assert len(seen) == calls
    assert seen[-1] != where
    assert same(bits(net), before)
    assert places(net) == where
    step(net, opt)
    assert same(bits(net), before)


@pytest.mark.parametrize("exit", EXITS)
def test_who_took_hold_of_the_weights_in_the_block_has_weights_afterwards(exit: str) -> None:
    net, opt = began()
    before = bits(net)
    opt.perturb()
    state, view, array = net.state_dict(), net[0].weight.detach()[3:5], net[2].weight.detach().numpy()
    EXITS[exit](net, opt)
    assert same(bits(net), before)
    assert same(list(state.values()), before)
    assert torch.equal(view, before[0][3:5])
    assert torch.equal(torch.from_numpy(array), before[2])
    with torch.no_grad():
        net[0].weight.fill_(7.0)
    assert bool((view == 7).all())  # and they go on to be the weights, not copies of them


def test_who_had_hold_of_them_before_sees_what_he_would_have_seen() -> None:
    net, opt = began()
    before, where, state = bits(net), places(net), net.state_dict()
    opt.perturb()
    assert places(net) == where  # in place, since a state dict is there
    assert same(list(state.values()), bits(net))
    opt.restore()
    assert same(list(state.values()), before)


@pytest.mark.parametrize("cls", [S2SAM, SAM, ZOSAM, functools.partial(ZOSAM, guided=True)])
def test_steps_are_those_in_place_to_the_bit(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for least in (exchange.LEAST, 1 << 60):
        monkeypatch.setattr(exchange, "LEAST", least)
        net, opt = began(cls, lr=0.01, momentum=0.9)
        for _ in range(4):
            step(net, opt)
        ends.append(bits(net))
    assert same(*ends)


def test_two_parameters_in_one_storage_move_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As weights are that were tied by `.data`: one weight, which goes along both gradients."""
    points = []
    for least in (exchange.LEAST, 1 << 60):
        monkeypatch.setattr(exchange, "LEAST", least)
        net = network()
        net[2].weight.data = net[0].weight.data
        opt = S2SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.0)
        step(net, opt)
        opt.perturb()
        assert net[0].weight.data_ptr() == net[2].weight.data_ptr()
        points.append(bits(net))
    assert same(*points)


def test_a_graph_from_before_is_not_run_back_through_other_weights() -> None:
    net, opt = began()
    loss = loss_of(net)
    opt.perturb()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("cls", [S2SAM, ZOSAM])
def test_memory_is_one_copy_and_the_same_in_every_step(cls: Any) -> None:
    """The copy is all: ZO-SAM draws its direction where the weights will lie."""
    net, opt = began(cls)
    there = []
    for _ in range(3):
        opt.perturb(lambda: loss_of(net))
        there.append(net[0].weight.data_ptr())
        opt.restore()
    assert len(set(there)) == 1
    assert opt._step_state.buffers.nbytes == sum(p.nbytes for p in net.parameters())


def test_an_interrupt_while_storage_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    net, opt = began()
    before, where, add, calls = bits(net), places(net), torch.add, []

    def interrupted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(*args, **kwargs)

    monkeypatch.setattr(torch, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.perturb()
    assert same(bits(net), before)
    assert places(net) == where
    opt.restore()
    opt.perturb()
    assert not same(bits(net), before)
    opt.restore()
    assert same(bits(net), before)


def test_weights_that_were_changed_in_the_block_come_back_too() -> None:
    """A layer that renormalizes its weight in forward, and a cast to another type."""
    net = network()
    before, weights = bits(net), Weights(net.parameters())
    with weights.moved({p: torch.ones_like(p) for p in weights.parameters}, 1.0), torch.no_grad():
        net[0].weight.mul_(3.0)
        net[2].weight.data = net[2].weight.data.double()
    assert net[2].weight.dtype == torch.float64
    assert same(bits(net.float()), before)


def test_hooks_where_gradients_are_accumulated_stay() -> None:
    """DDP averages gradients in hooks of the nodes that accumulate them; new nodes would have none."""
    net, opt = began()
    nodes = [p.expand_as(p).grad_fn.next_functions[0][0] for p in net.parameters()]
    came: list[int] = []
    for i, node in enumerate(nodes):
        node.register_hook(lambda *_, i=i: came.append(i))
    step(net, opt)
    step(net, opt)
    assert sorted(came) == sorted([*range(len(nodes))] * 2)
