"""The torch optimizers in loops that keep their order, and in loops that do not."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_efficient import MSAM, S2SAM, SAM, ZOSAM, LookSAM
from tests.optimization.loop.loops import CLASSES, loss_of, network, same, step, steps, values


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_without_perturb_is_refused(cls: Any) -> None:
    net = network()
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    for number in range(3):
        step(net, opt, number)
    before = values(net)
    loss_of(net, 3).backward()
    with pytest.raises(ValueError, match=rf"{cls.__name__}: perturb\(.*\) was not called"):
        opt.step()
    assert same(values(net), before)
    opt.zero_grad()
    step(net, opt, 4)  # nothing is lost by it
    assert not same(values(net), before)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_after_restore_needs_a_gradient_from_before_it(cls: Any) -> None:
    """As in a loop that catches an error and goes on."""
    net = network()
    opt = cls(net.parameters(), torch.optim.AdamW, lr=0.1)
    steps(net, opt, 2)
    before = values(net)
    with pytest.raises(RuntimeError, match="of memory"), opt.perturb(lambda: loss_of(net, 2)):
        raise RuntimeError("out of memory")
    loss_of(net, 2).backward()
    with pytest.raises(ValueError, match="was not called since the last step"):
        opt.step()
    assert same(values(net), before)
    opt.zero_grad()
    opt.perturb(lambda: loss_of(net, 2))
    loss_of(net, 2).backward()
    opt.eval()  # as an evaluation between backward and step
    opt.step()
    assert not same(values(net), before)


@pytest.mark.parametrize("cls", CLASSES)
def test_where_nothing_is_to_be_perturbed_perturb_may_be_left_out(cls: Any) -> None:
    net = network()
    opt = cls(net.parameters(), torch.optim.SGD, rho=0.0, lr=0.1, momentum=0.9)
    loss_of(net, 0).backward()
    opt.step()
    late = cls(net.parameters(), torch.optim.SGD, rho=lambda t: 0.1 * (t > 0), lr=0.1, momentum=0.9)
    late.step()
    late.zero_grad()
    loss_of(net, 1).backward()
    with pytest.raises(ValueError, match="was not called"):
        late.step()


def test_torch_may_fill_the_state_with_steps_of_zero() -> None:
    """As torch.distributed.checkpoint does before it loads."""
    net = network()
    opt = S2SAM(net.parameters(), torch.optim.AdamW, lr=0.1)
    opt.step()  # and as loops do to quieten a scheduler
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    opt.step(closure=None)
    assert opt.state


@pytest.mark.parametrize("cls", [S2SAM, MSAM, LookSAM, ZOSAM])
def test_perturb_after_backward_warns_once(cls: Any) -> None:
    net = network()
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)

    def wrong(number: int) -> None:
        loss_of(net, number).backward()
        opt.perturb(lambda: loss_of(net, number))
        loss_of(net, number).backward()
        opt.step()
        opt.zero_grad()

    with pytest.warns(UserWarning, match=r"before the first backward"):
        wrong(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrong(1)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("when", ["start", "after perturb", "end"])
def test_right_orders_say_nothing(cls: Any, to_none: bool, when: str) -> None:
    net = network()
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(4):
            if when == "start":
                opt.zero_grad(set_to_none=to_none)
            opt.perturb(lambda: loss_of(net, number))
            if when == "after perturb":
                opt.zero_grad(set_to_none=to_none)
            for micro in (number, number + 1):
                if cls in (S2SAM, MSAM):
                    opt.train()  # as accelerate asks for
                loss_of(net, micro).backward()
                opt.eval() if number == 2 and micro == 2 else None
                opt.perturb(lambda: loss_of(net, number))
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            if number == 3:
                opt.state_dict()  # brings the weights back; the gradients were taken where they belong
            opt.step()
            if when == "end":
                opt.zero_grad(set_to_none=to_none)


def test_probes_take_a_number_for_a_loss() -> None:
    net = network()
    opt = ZOSAM(net.parameters(), torch.optim.SGD, lr=0.1)
    before = values(net)
    opt.perturb(lambda: loss_of(net, 0).item())  # type: ignore[arg-type, return-value]
    assert not same(values(net), before)


def test_sam_by_the_gradients_that_stand_needs_some() -> None:
    net = network()
    opt = SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        opt.perturb()


def test_a_closure_that_runs_backward_is_refused() -> None:
    net = network()

    def both() -> Tensor:
        loss = loss_of(net, 0)
        loss.backward()
        return loss

    for cls in (SAM, LookSAM, ZOSAM):
        opt = cls(net.parameters(), torch.optim.SGD, lr=0.1)
        with pytest.raises(ValueError, match="without backward"):
            opt.perturb(both)
        with pytest.raises(ValueError, match="must return the loss"):
            opt.perturb(lambda: None)  # type: ignore[arg-type, return-value]


def test_a_loss_that_has_no_one_gradient_is_named() -> None:
    net = network()
    before = values(net)
    for cls in (SAM, LookSAM, ZOSAM):
        opt = cls(net.parameters(), torch.optim.SGD, lr=0.1)
        with pytest.raises(ValueError, match=r"one value.*shape \(2,\).*\.mean\(\)"):
            opt.perturb(lambda: torch.stack([loss_of(net, 0), loss_of(net, 1)]))
        with pytest.raises(ValueError, match=r"one value.*complex64"):
            opt.perturb(lambda: loss_of(net, 0) * 1j)
        if cls is not ZOSAM:  # which needs no graph
            with pytest.raises(ValueError, match=r"no graph.*detach"):
                opt.perturb(lambda: loss_of(net, 0).detach())
        assert same(values(net), before)
        step(net, opt, 0)  # nothing is left of it
        before = values(net)


@pytest.mark.parametrize("cls", CLASSES)
def test_parameters_that_are_not_the_models_warn_once(cls: Any) -> None:
    net, other = network(), network()
    opt = cls(other.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    if cls is SAM:
        with pytest.raises(ValueError, match="no gradient"):
            step(net, opt, 0)
        return
    if cls is LookSAM:
        with pytest.raises(ValueError, match="no gradient"):
            step(net, opt, 0)
        return
    with pytest.warns(UserWarning, match="no gradient") as said:
        steps(net, opt, 5)
    assert len([w for w in said if "no gradient" in str(w.message)]) == 1


def test_the_second_backward_of_sam_may_not_be_left_out() -> None:
    net = network()
    opt = SAM(net.parameters(), torch.optim.SGD, lr=0.1)

    def run() -> None:
        for number in range(3):
            loss_of(net, number).backward()
            opt.perturb()
            opt.step()
            opt.zero_grad()

    with pytest.warns(UserWarning, match="no gradient"):
        run()


def test_the_base_may_not_step_by_itself() -> None:
    net = network()
    opt = S2SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    opt.perturb()
    loss_of(net, 0).backward()
    with pytest.raises(ValueError, match=r"while the weights are perturbed.*S2SAM\.step"):
        opt.base.step()
    opt.step()


def test_losses_that_stay_infinite_warn_once() -> None:
    net = network()
    opt = S2SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.warns(UserWarning, match="not finite") as said:
        steps(net, opt, 3, float("inf"))
    assert len(said) == 1


def test_bases_that_cannot_work_are_refused_when_the_optimizer_is_made() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"LBFGS.*closure"):
        S2SAM(net.parameters(), torch.optim.LBFGS)
    with pytest.raises(ValueError, match="SAM perturbs the weights itself"):
        S2SAM(net.parameters(), SAM)
    with pytest.raises(TypeError, match=r"class of an optimizer.*torch\.optim\.SGD, lr"):
        S2SAM(net.parameters(), torch.optim.SGD(net.parameters(), lr=0.1))  # type: ignore[arg-type]
    lomo = pytest.importorskip("lomo_optim")
    with pytest.raises(ValueError, match=r"Lomo.*inside backward"):
        S2SAM(net.parameters(), lomo.Lomo)
