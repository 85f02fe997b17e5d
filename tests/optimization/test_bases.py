"""The torch optimizers over bases with a protocol of their own, in loops that do not keep ours, and in Lightning."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_efficient import MSAM, S2SAM, SAM, ZOSAM, LookSAM
from tests.optimization.loops import CLASSES, batch, network, same, step, values
from tests.optimization.trainers import METHODS, bert, build, rows, trained


def loss_of(net: nn.Module, number: int) -> Tensor:
    x, y = batch(number)
    return nn.functional.cross_entropy(net(x), y)


def smooth() -> Any:
    """Without weights whose gradient is nothing but rounding, which Adam and its kin would blow up."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def steps(net: nn.Module, opt: Any, count: int, spoil: float = 1.0) -> None:
    for number in range(count):
        step(net, opt, number, spoil)


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
    with pytest.raises(ValueError, match="no gradient stands"):
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
    with pytest.raises(ValueError, match="SAM perturbs by itself"):
        S2SAM(net.parameters(), SAM)
    with pytest.raises(TypeError, match=r"class of an optimizer.*torch\.optim\.SGD, lr"):
        S2SAM(net.parameters(), torch.optim.SGD(net.parameters(), lr=0.1))  # type: ignore[arg-type]
    lomo = pytest.importorskip("lomo_optim")
    with pytest.raises(ValueError, match=r"Lomo.*inside of backward"):
        S2SAM(net.parameters(), lomo.Lomo)


# schedule-free: the weights that are evaluated are not those that are trained


def schedule_free(name: str = "AdamWScheduleFree") -> Any:
    return getattr(pytest.importorskip("schedulefree"), name)


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
        saved = [p.detach().clone() for p in twin.parameters()]
        norm = torch.stack([g.square().sum() for g in last]).sum().sqrt() if last else 1.0
        with torch.no_grad():
            for p, g in zip(twin.parameters(), last):
                p.add_(g, alpha=0.3 / float(norm))
        loss_of(twin, number).backward()
        last = [p.grad.clone() for p in twin.parameters()]  # type: ignore[union-attr]
        with torch.no_grad():
            for p, w in zip(twin.parameters(), saved):
                p.copy_(w)
        base.step()
        base.zero_grad()
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
        for g, kept in zip(seen[-1], trainer._ascent.memory["gradient"].values()):
            assert torch.equal(g, kept), optim


BASES: dict[str, Any] = {
    "fused Adam": lambda: (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
    "foreach Adam": lambda: (torch.optim.AdamW, {"lr": 0.01, "foreach": True}),
    "Adafactor of torch": lambda: (torch.optim.Adafactor, {"lr": 0.01}),
    "RAdam": lambda: (torch.optim.RAdam, {"lr": 0.01}),
    "RMSprop": lambda: (torch.optim.RMSprop, {"lr": 0.01}),
    "AdamW8bit": lambda: (pytest.importorskip("bitsandbytes").optim.AdamW8bit, {"lr": 0.01, "min_8bit_size": 16}),
    "AdamW32bit": lambda: (pytest.importorskip("bitsandbytes").optim.AdamW32bit, {"lr": 0.01}),
    "Lion": lambda: (pytest.importorskip("lion_pytorch").Lion, {"lr": 0.01}),
    "torchao": lambda: (pytest.importorskip("torchao.optim").AdamW8bit, {"lr": 0.01}),
}


@pytest.mark.parametrize("base", [*list(BASES)[:-1], pytest.param("torchao", marks=pytest.mark.slow)])  # it compiles
def test_every_base_takes_the_gradient_of_the_perturbed_weights(base: str) -> None:
    cls, kwargs = BASES[base]()
    net, twin = smooth(), smooth()
    opt, plain = S2SAM(net.parameters(), cls, rho=0.3, **kwargs), cls(twin.parameters(), **kwargs)
    last: list[Tensor] = []
    for number in range(4):
        step(net, opt, number)
        saved = [p.detach().clone() for p in twin.parameters()]
        norm = torch.stack([g.square().sum() for g in last]).sum().sqrt() if last else 1.0
        with torch.no_grad():
            for p, g in zip(twin.parameters(), last):
                p.add_(g, alpha=0.3 / float(norm))
        loss_of(twin, number).backward()
        last = [p.grad.clone() for p in twin.parameters()]  # type: ignore[union-attr]
        with torch.no_grad():
            for p, w in zip(twin.parameters(), saved):
                p.copy_(w)
        plain.step()
        plain.zero_grad()
    for a, b in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    other = S2SAM(net.parameters(), cls, rho=0.3, **kwargs)
    other.load_state_dict(opt.state_dict())
    step(net, other, 5)


# step(closure), as Lightning and torch have it


def with_backward(net: nn.Module, opt: Any, number: int) -> Any:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of(net, number)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("cls", [S2SAM, MSAM])
def test_step_with_a_closure_is_a_perturbed_step(cls: Any) -> None:
    net, twin = network(batch_norm=True), network(batch_norm=True)
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    opt, other = cls(net.parameters(), torch.optim.SGD, **settings), cls(twin.parameters(), torch.optim.SGD, **settings)
    for number in range(4):
        loss = opt.step(with_backward(net, opt, number))
        assert loss.item() > 0
        step(twin, other, number)
        assert same(values(net), values(twin))


def test_a_closure_without_backward_does_not_stand_for_perturb() -> None:
    """As Lightning's `self.optimizers().step()` has one in manual optimization."""
    net = network()
    opt = S2SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    steps(net, opt, 2)
    before = values(net)
    loss_of(net, 2).backward()
    with (
        pytest.warns(UserWarning, match="after a backward"),
        pytest.raises(ValueError, match=r"optimizers\(\)\.perturb"),
    ):
        opt.step(lambda: None)
    assert same(values(net), before)


@pytest.mark.parametrize("cls", [SAM, ZOSAM, LookSAM])
def test_step_with_a_closure_names_the_way_where_the_batch_is_needed(cls: Any) -> None:
    net = network()
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match=r"opt\.perturb\(.*manual optimization"):
        opt.step(with_backward(net, opt, 0))
    opt.perturb(lambda: loss_of(net, 0))
    opt.step(with_backward(net, opt, 0))  # who has perturbed may do the rest in a closure


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("cls", [S2SAM, SAM])
def test_lightning(cls: Any, manual: bool, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.automatic_optimization = network(batch_norm=True), not manual

        def configure_optimizers(self) -> Any:
            return cls(self.net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9)

        def training_step(self, number: Any, _: int) -> Any:
            if not manual:
                return loss_of(self.net, int(number))
            opt = self.optimizers()
            opt.perturb(lambda: loss_of(self.net, int(number)))
            self.manual_backward(loss_of(self.net, int(number)))
            opt.step()
            opt.zero_grad()
            return None

    module = Module()
    trainer = lightning.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data: Any = torch.utils.data.DataLoader([0, 1, 2, 3], batch_size=None)  # type: ignore[arg-type]
    if cls is SAM and not manual:
        with pytest.raises(ValueError, match="manual optimization"):
            trainer.fit(module, data)
        return
    trainer.fit(module, data)
    net = network(batch_norm=True)
    opt = cls(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9)
    for number in range(4):
        step(net, opt, number)
    assert same(values(module.net), values(net))


def test_a_stock_trainer_that_does_not_call_train_is_refused(tmp_path: Path) -> None:
    from transformers import Trainer

    class Own(Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    keywords = {"base_optimizer": torch.optim.AdamW, "lr": 1e-2}
    trainer = build(tmp_path, None, cls=Own, build_kwargs={"optimizer_cls_and_kwargs": (S2SAM, keywords)})
    with pytest.raises(ValueError, match=r"S2SAM: perturb\(\) was not called.*opt\.train\(\)"):
        trainer.train()


@pytest.mark.parametrize(("before", "after"), [(S2SAM, LookSAM), (S2SAM, SAM), (LookSAM, S2SAM)])
def test_loading_the_state_of_another_method_says_what_is_dropped(before: Any, after: Any) -> None:
    net = network()
    opt = before(net.parameters(), torch.optim.SGD, lr=0.1)
    for number in range(3):
        step(net, opt, number)
    other = after(net.parameters(), torch.optim.SGD, rho=0.05, lr=0.1)
    with pytest.warns(UserWarning, match=f"{before.__name__}.*dropped"):
        other.load_state_dict(opt.state_dict())
    assert set(other.ascent.memory) == set(after(net.parameters(), torch.optim.SGD, lr=0.1).ascent.memory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before(net.parameters(), torch.optim.SGD, lr=0.1).load_state_dict(opt.state_dict())
        other.load_state_dict(torch.optim.SGD(net.parameters(), lr=0.1).state_dict())


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
    with pytest.raises(ValueError, match=r"does not find in this optimizer.*declare\("):
        MSAM(net.parameters(), Own)
    MSAM(net.parameters(), torch.optim.SGD, rho=0.0, lr=0.1)  # plain training
    for optim in ("sgd", "adafactor"):
        with pytest.raises(ValueError, match="MSAM follows the momentum"):
            trained(tmp_path, METHODS["msam"], optim=optim)
