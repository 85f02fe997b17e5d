"""Steps in the space of LoRA's merged weight are those of a dense computation, and no factor is ever moved."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, ShiraConfig, get_peft_model
from torch import Tensor, nn

from hf_efficient import ASAM, MSAM, S2SAM, SAM, ZOSAM, BiDSTConfig, LookSAM
from hf_efficient.optimization.engine.merged import projection
from tests.optimization.engine.dense_lora import (
    RATE,
    RHO,
    SCALE,
    TARGETS,
    Dense,
    Net,
    adapted,
    bits,
    dense_gradients,
    factors,
    loss_of,
    moved,
    same,
    trainable,
)

STARTS: dict[str, Callable[[], Any]] = {
    "trained": adapted,
    "B = 0": lambda: adapted(trained=False),
    "rank 1 of 2": lambda: _rank_one(adapted()),
}


def _rank_one(model: Any) -> Any:
    with torch.no_grad():
        for name in TARGETS:
            b = factors(model, name)[1]
            b[:, 1] = 2 * b[:, 0]
    return model


@pytest.mark.parametrize("start", STARTS)
def test_sam_is_that_of_the_dense_merged_weight(start: str) -> None:
    model = STARTS[start]()
    dense = Dense(model)
    opt = SAM(trainable(model), torch.optim.SGD, rho=RHO, lr=RATE, momentum=0.9, merged=model)
    for step in range(4):
        weights = dense.weights(model)
        expected = dense_gradients(
            model, dense, moved(weights, dense.direction(model, dense.gradient(weights, step))), step
        )
        opt.perturb(lambda: loss_of(model, step))
        loss_of(model, step).backward()
        for p, g in zip(trainable(model), expected):
            torch.testing.assert_close(p.grad, g, atol=1e-9, rtol=1e-7)
        opt.step()
        opt.zero_grad()


def test_s2_sam_goes_along_the_last_gradient_as_it_was_projected_then() -> None:
    model = adapted(trained=False)
    dense, twin = Dense(model), adapted(trained=False)
    opt = S2SAM(trainable(model), torch.optim.SGD, rho=RHO, lr=RATE, momentum=0.9, merged=model)
    base = torch.optim.SGD(trainable(twin), lr=RATE, momentum=0.9)
    last: dict[str, Tensor] = {}
    for step in range(6):
        weights = dense.weights(twin)
        point = moved(weights, last) if last else weights
        for p, g in zip(trainable(twin), dense_gradients(twin, dense, point, step)):
            p.grad = g
        last = dense.direction(twin, dense.gradient(point, step))  # before the adapter changes
        base.step()
        with opt.perturb():
            loss_of(model, step).backward()
        opt.step()
        opt.zero_grad()
        for p, q in zip(trainable(model), trainable(twin)):
            torch.testing.assert_close(p, q, atol=1e-9, rtol=1e-7)


def test_the_point_does_not_depend_on_how_the_product_is_split() -> None:
    """B R and R^-1 A are the same weight; perturbing A and B themselves goes elsewhere."""
    losses: dict[bool, list[float]] = {True: [], False: []}
    for merged in (True, False):
        for split in (1.0, 7.0):
            model = adapted(modules_to_save=None)
            with torch.no_grad():
                for name in TARGETS:
                    a, b = factors(model, name)
                    a.mul_(split), b.div_(split)
            opt = SAM(trainable(model), torch.optim.SGD, rho=RHO, lr=RATE, merged=model if merged else None)
            opt.perturb(lambda model=model: loss_of(model, 0))  # type: ignore[misc]
            losses[merged].append(loss_of(model, 0).item())
            opt.restore()
    assert losses[True][0] == pytest.approx(losses[True][1], rel=1e-9)
    assert losses[False][0] != pytest.approx(losses[False][1], rel=1e-3)


def test_what_is_projected_is_the_best_that_factors_can_do() -> None:
    """G - P is orthogonal to every s (dB A + B dA), and the norm is that of Y and Z."""
    torch.manual_seed(0)
    a, b, g = (torch.randn(shape).double() for shape in ((3, 11), (9, 3), (9, 11)))
    y, z, q_a, q_b = projection(a, b, SCALE * b.T @ g, SCALE * g @ a.T, SCALE, 1e-15)
    p = q_b @ y + z @ q_a.T
    assert float((b.T @ (g - p)).abs().max()) < 1e-12
    assert float(((g - p) @ a.T).abs().max()) < 1e-12
    assert float(p.square().sum()) == pytest.approx(float(y.square().sum() + z.square().sum()), rel=1e-12)


def leave_by_step(model: Any, opt: Any) -> None:
    loss_of(model, 1).backward()
    for group in opt.param_groups:
        group["lr"] = 0.0
    opt.step()


def raised(error: type[BaseException]) -> Callable[[Any, Any], None]:
    def leave(model: Any, opt: Any) -> None:
        with pytest.raises(error), opt.perturb():
            raise error

    return leave


EXITS: dict[str, Callable[[Any, Any], Any]] = {
    "step": leave_by_step,
    "error": raised(RuntimeError),
    "Ctrl-C": raised(KeyboardInterrupt),
    "restore": lambda model, opt: opt.restore(),
    "state_dict": lambda model, opt: opt.state_dict(),
    "eval": lambda model, opt: opt.eval(),
}


@pytest.mark.parametrize("exit", EXITS)
@pytest.mark.parametrize("cls", [SAM, S2SAM])
def test_nobody_sees_a_perturbed_weight_after_any_exit(cls: Any, exit: str) -> None:
    model = adapted()
    opt = cls(trainable(model), torch.optim.SGD, rho=RHO, lr=RATE, merged=model)
    opt.perturb(lambda: loss_of(model, 0))
    loss_of(model, 0).backward()
    opt.step()
    opt.zero_grad()
    before, plain, places = bits(model), loss_of(model, 0).detach(), [p.data_ptr() for p in model.parameters()]
    opt.perturb(lambda: loss_of(model, 0))
    held = {name: p for name, p in model.named_parameters() if "head" not in name}
    assert all(torch.equal(p, q) for p, q in zip(held.values(), adapted_like(model, before, held)))
    assert loss_of(model, 0) != plain
    EXITS[exit](model, opt)
    assert same(bits(model), before)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert torch.equal(loss_of(model, 0), plain)
    assert not any(module._forward_hooks for module in model.modules())


def adapted_like(model: nn.Module, values: list[Tensor], names: Any) -> list[Tensor]:
    stored = dict(zip(model.state_dict(), values))
    return [stored[name] for name in names]


def test_sixteen_bits_hold_the_smallest_perturbation() -> None:
    """Weights of bfloat16 would lose it; the term beside them does not, and no warning is given."""
    model = adapted(modules_to_save=None, target_modules=["first"]).bfloat16()
    x, layer = torch.randn(6, 2, 4, 4).bfloat16(), model.get_base_model().first
    opt = SAM(trainable(model), torch.optim.SGD, rho=1e-4, lr=RATE, merged=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.perturb(lambda: model(x).square().sum())
    with torch.no_grad():
        layer.lora_B["default"].weight.zero_()  # so that the term is alone
        term = layer.lora_B["default"](layer.lora_A["default"](torch.eye(20).bfloat16())).float()
    assert float(term.norm()) * SCALE == pytest.approx(1e-4, rel=0.01)


def test_state_is_saved_and_copied() -> None:
    ends = []
    for way in ("none", "state_dict", "deepcopy", "pickle"):
        model = adapted()
        opt = S2SAM(trainable(model), torch.optim.AdamW, rho=RHO, lr=RATE, merged=model)
        for step in range(4):
            if step == 2 and way == "state_dict":
                state, twin = opt.state_dict(), copy.deepcopy(model)
                opt = S2SAM(trainable(twin), torch.optim.AdamW, rho=RHO, lr=RATE, merged=twin)
                opt.load_state_dict(state)
                model = twin
            elif step == 2 and way != "none":
                again: Any = {"deepcopy": copy.deepcopy, "pickle": lambda two: pickle.loads(pickle.dumps(two))}
                model, opt = again[way]((model, opt))
            opt.perturb()
            loss_of(model, step).backward()
            opt.step()
            opt.zero_grad()
        ends.append(bits(model))
    assert all(same(end, ends[0]) for end in ends)
    plain = S2SAM(trainable(model), torch.optim.AdamW, rho=RHO, lr=RATE)
    with pytest.warns(UserWarning, match="merged=True, now False"):
        plain.load_state_dict(opt.state_dict())


def linear(config: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), config)
    for p in trainable(model):
        nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("config", [ShiraConfig(r=2, target_modules=["0"], random_seed=0),
                                    BiDSTConfig(target_modules=["0"], target="delta", sparsity=0.7)])  # fmt: skip
def test_values_of_sparse_deltas_are_entries_of_the_merged_weight(config: Any) -> None:
    """So that both spaces are one: the merged weight goes ρ along its gradient on those entries."""
    x, ends = torch.randn(5, 6), []
    for merged in (True, False):
        model = linear(config)
        layer = next(m for m in model.modules() if hasattr(m, "get_delta_weight"))
        start = layer.get_delta_weight("default").detach().to_dense().clone()
        opt = SAM(trainable(model), torch.optim.SGD, rho=RHO, lr=RATE, merged=model if merged else None)
        opt.perturb(lambda model=model: model(x).square().sum())  # type: ignore[misc]
        ends.append(layer.get_delta_weight("default").detach().to_dense() - start)
    assert torch.equal(*ends)
    assert float(ends[0].norm()) == pytest.approx(RHO, rel=1e-5)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no adapter": (Net, "found no trainable adapter"),
    "DoRA": (lambda: adapted(use_dora=True), "is DoraConv2d, whose merged weight is not"),
    "LoHa": (lambda: linear(LoHaConfig(target_modules=["0"])), "is a tuners.loha.layer.Linear, whose merged"),
    "embedding": (lambda: get_peft_model(nn.Sequential(nn.Embedding(9, 4)), LoraConfig(target_modules=["0"])),
                  "tuners.lora.layer.Embedding; expected LoRA on linear"),
    "A alone": (lambda: half(adapted()), "trains one of the factors A and B alone"),
    "two adapters": (lambda: twice(adapted()), "trains the adapters .* at once"),
}  # fmt: skip


def half(model: Any) -> Any:
    factors(model, "first")[1].requires_grad_(False)
    return model


def twice(model: Any) -> Any:
    model.add_adapter("other", LoraConfig(r=2, target_modules=list(TARGETS)))
    model.base_model.set_adapter(["default", "other"])
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_such_weight_is_refused_by_name(name: str) -> None:
    build, message = REFUSED[name]
    model = build()
    with pytest.raises(ValueError, match=message):
        SAM(model.parameters(), torch.optim.SGD, lr=RATE, merged=model)


def test_methods_that_do_not_know_merged_weights_refuse_them() -> None:
    model = adapted()
    for cls in (ASAM, ZOSAM, LookSAM, MSAM):
        with pytest.raises(ValueError, match="perturb='merged' is not read by method"):
            cls(trainable(model), torch.optim.SGD, lr=RATE, momentum=0.9, merged=model)
    with pytest.raises(ValueError, match="perturb='merged' is read only with adaptive=False"):
        SAM(trainable(model), torch.optim.SGD, lr=RATE, adaptive=True, merged=model)
    with pytest.raises(ValueError, match="one of LoRA's factors"):
        SAM([factors(model, "first")[0]], torch.optim.SGD, lr=RATE, merged=model).perturb(lambda: loss_of(model, 0))


def test_what_computes_without_the_layers_is_noticed() -> None:
    """As a function compiled before the step would, which has not seen the term."""
    model = adapted(modules_to_save=None)
    opt = S2SAM(trainable(model), torch.optim.SGD, lr=RATE, merged=model)
    a, b = factors(model, "first")

    def step() -> None:
        opt.perturb()
        (b @ a).square().sum().backward()
        opt.step()
        opt.zero_grad()

    step()
    with pytest.warns(UserWarning, match="has moved no weight in the last 2 steps"):
        step()
