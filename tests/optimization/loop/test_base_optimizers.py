"""The torch optimizers over bases with a protocol of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_efficient import MSAM, S2SAM
from tests.optimization.loop.loops import loss_of, network, same, smooth, step, steps, values
from tests.optimization.training.trainers import METHODS, bert, build, rows, trained


def schedule_free(name: str = "AdamWScheduleFree") -> Any:
    return getattr(pytest.importorskip("schedulefree"), name)


def step_by_hand(net: nn.Module, base: Any, number: int, last: list[Tensor], rho: float = 0.3) -> list[Tensor]:
    """A step of S2-SAM as its equation has it: the gradient at w + rho g/|g|, g that of the last step; returns it."""
    saved = [p.detach().clone() for p in net.parameters()]
    norm = torch.stack([g.square().sum() for g in last]).sum().sqrt() if last else 1.0
    with torch.no_grad():
        for p, g in zip(net.parameters(), last):
            p.add_(g, alpha=rho / float(norm))
    loss_of(net, number).backward()
    gradient = [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]
    with torch.no_grad():
        for p, w in zip(net.parameters(), saved):
            p.copy_(w)
    base.step()
    base.zero_grad()
    return gradient


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"])
def test_schedule_free_bases_are_put_into_their_modes(name: str) -> None:
    """Against the equations by hand: direction of the last gradient, perturbed around the weights of train mode."""
    net, twin = smooth(), smooth()
    opt = S2SAM(net.parameters(), schedule_free(name), rho=0.3, lr=0.1)
    base = schedule_free(name)(twin.parameters(), lr=0.1)
    last: list[Tensor] = []
    for number in range(10):  # RAdam changes what it does after five
        step(net, opt, number)
        base.train()
        last = step_by_hand(twin, base, number, last)
        if number % 2:  # an evaluation in between
            opt.eval()
            base.eval()
        for a, b in zip(net.parameters(), twin.parameters()):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert opt.base.param_groups[0]["train_mode"] is False


def test_schedule_free_evaluates_what_it_would_alone() -> None:
    net, twin = network(batch_norm=True), network(batch_norm=True)
    opt, base = S2SAM(net.parameters(), schedule_free(), rho=0.0, lr=0.1), schedule_free()(twin.parameters(), lr=0.1)
    for number in range(5):
        step(net, opt, number)
        base.train()
        step(twin, base, number)
        opt.eval()
        base.eval()
        assert same(values(net), values(twin))


@pytest.mark.parametrize("method", ["s2sam", "sam", "guided"])
def test_trainers_over_a_schedule_free_optimizer(method: str, tmp_path: Path) -> None:
    """Evaluation changes the mode, and with it the weights, in between: training does not notice."""
    schedule_free()
    runs = []
    for extra in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = build(
            tmp_path, METHODS[method], bert(0.0), optim="schedule_free_adamw", lr_scheduler_type="constant",
            max_steps=5, build_kwargs={"eval_dataset": rows(4)}, **extra,
        )  # fmt: skip
        trainer.train()
        trainer.optimizer.train()
        runs.append(trainer.model)
    for a, b in zip(*(model.parameters() for model in runs)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_a_trainers_memory_is_not_what_the_optimizer_makes_of_the_gradient(tmp_path: Path) -> None:
    schedule_free()
    seen: list[Any] = []

    class Watched(type(trained(tmp_path, METHODS["s2sam"], max_steps=1))):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            seen.append([p.grad.clone() for p in self.model.parameters()])
            return loss

    for optim in ("schedule_free_adamw", "adamw_torch"):
        trainer = build(tmp_path, METHODS["s2sam"], bert(0.0), cls=Watched, optim=optim, max_grad_norm=0.0)
        trainer.train()
        for g, kept in zip(seen[-1], trainer._variant.memory["gradient"].values()):
            assert torch.equal(g, kept), optim


#: name -> class, arguments, settings of the group
BASES: dict[str, Any] = {
    "fused Adam": lambda: (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
    "foreach Adam": lambda: (torch.optim.AdamW, {"lr": 0.01, "foreach": True}),
    "Adafactor of torch": lambda: (torch.optim.Adafactor, {"lr": 0.01}),
    "RAdam": lambda: (torch.optim.RAdam, {"lr": 0.01}),
    "RMSprop": lambda: (torch.optim.RMSprop, {"lr": 0.01}),
    "AdamW8bit": lambda: (pytest.importorskip("bitsandbytes").optim.AdamW8bit, {"lr": 0.01, "min_8bit_size": 16}),
    "AdamW32bit": lambda: (pytest.importorskip("bitsandbytes").optim.AdamW32bit, {"lr": 0.01}),
    "Lion": lambda: (pytest.importorskip("lion_pytorch").Lion, {"lr": 0.01}),
    "Muon": lambda: (torch.optim.Muon, {"lr": 0.01}),
    "GaLore": lambda: (pytest.importorskip("galore_torch").GaLoreAdamW, {"lr": 0.01, "no_deprecation_warning": True},
                       {"rank": 2, "update_proj_gap": 2, "scale": 1.0, "proj_type": "std"}),
    "torchao": lambda: (pytest.importorskip("torchao.optim").AdamW8bit, {"lr": 0.01}),
}  # fmt: skip
OF_MATRICES = ("Muon", "GaLore")


def matrices() -> Any:
    """As `smooth`, without biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 3, bias=False))


@pytest.mark.parametrize("base", [*list(BASES)[:-1], pytest.param("torchao", marks=pytest.mark.slow)])  # it compiles
def test_every_base_takes_the_gradient_of_the_perturbed_weights(base: str) -> None:
    cls, kwargs, *settings = BASES[base]()
    net, twin, still = (matrices() if base in OF_MATRICES else smooth() for _ in range(3))
    group = lambda net: [{"params": list(net.parameters()), **(settings[0] if settings else {})}]
    opt, plain = S2SAM(group(net), cls, rho=0.3, **kwargs), cls(group(twin), **kwargs)
    unmoved, last = S2SAM(group(still), cls, rho=0.0, **kwargs), list[Tensor]()
    for number in range(4):
        step(net, opt, number)
        last = step_by_hand(twin, plain, number, last)
        step(still, unmoved, number)
    near = 1e-3 if base == "Muon" else 1e-4  # which computes in bfloat16
    for a, b in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, atol=near, rtol=0)
    assert max(float((a - b).detach().abs().max()) for a, b in zip(net.parameters(), still.parameters())) > 2 * near
    other = S2SAM(group(net), cls, rho=0.3, **kwargs)
    other.load_state_dict(opt.state_dict())
    step(net, other, 5)


# MSAM reads the momentum through the adapter that knows each optimizer's state


def along_the_momentum(base: Any, kwargs: dict[str, Any], settings: dict[str, Any] | None = None) -> list[Tensor]:
    """Where MSAM stands in the third step, from where it came."""
    net = smooth()
    groups = [{"params": [net[0].weight], **(settings or {})}, {"params": [net[0].bias, *net[2].parameters()]}]
    opt = MSAM(groups, base, rho=0.5, **kwargs)
    steps(net, opt, 2)
    before = [p.detach().clone() for p in net.parameters()]
    opt.perturb()
    return [(p - w).detach() for p, w in zip(net.parameters(), before)]


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    one, other = (torch.cat([x.flatten() for x in each]) for each in (a, b))
    return float(one @ other / (one.norm() * other.norm()))


def test_msam_follows_the_momentum_in_whatever_form_it_is_kept() -> None:
    bnb, galore = pytest.importorskip("bitsandbytes").optim, pytest.importorskip("galore_torch")
    adam: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.0}  # so little that all stand at the same place
    torchs = along_the_momentum(torch.optim.AdamW, adam)
    assert sum(float(d.square().sum()) for d in torchs) ** 0.5 == pytest.approx(0.5, rel=1e-4)
    for base, kwargs, least in (
        (bnb.AdamW32bit, adam, 0.9999),
        (bnb.AdamW8bit, {**adam, "min_8bit_size": 16}, 0.99),
        (bnb.PagedAdamW32bit, adam, 0.9999),
        (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9, "dampening": 0.1}, 0.98),
    ):
        moved = along_the_momentum(base, kwargs)
        assert cosine(moved, torchs) > least, base
    low = {"rank": 2, "update_proj_gap": 9, "scale": 1.0, "proj_type": "std"}
    moved = along_the_momentum(galore.GaLoreAdamW, {**adam, "no_deprecation_warning": True}, low)
    assert all((d != 0).any() for d in moved)  # the projected weight too
    assert torch.linalg.matrix_rank(moved[0], atol=1e-4) == 2


def test_msam_refuses_what_has_no_momentum_or_keeps_it_unknown_to_us(tmp_path: Path) -> None:
    class Own(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    net = network()
    with pytest.raises(ValueError, match="SGD has none as it is set; use SGD with momentum"):
        MSAM(net.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="has none"):
        MSAM(net.parameters(), schedule_free())
    with pytest.raises(ValueError, match=r"was not found in this optimizer.*declare\("):
        MSAM(net.parameters(), Own)
    MSAM(net.parameters(), torch.optim.SGD, rho=0.0, lr=0.1)  # plain training
    for optim in ("sgd", "adafactor"):
        with pytest.raises(ValueError, match="MSAM follows the momentum"):
            trained(tmp_path, METHODS["msam"], optim=optim)
