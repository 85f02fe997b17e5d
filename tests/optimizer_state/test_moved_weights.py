"""What an optimizer remembers of weights that moved: torch's optimizers and those of others, behind one adapter."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from hf_efficient import S2SAM, optimizer_state

K = 4608  # more than what bitsandbytes and torchao keep in 32 bits, and whole blocks
GALORE = {"rank": 4, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}


def _of(module: str, name: str, **settings: Any) -> Callable[[list[Any]], torch.optim.Optimizer]:
    def make(parameters: list[Any]) -> torch.optim.Optimizer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # galore_torch's AdamW calls itself deprecated, paged ones miss a GPU
            optimizer = getattr(pytest.importorskip(module), name)(parameters, **{"lr": 0.01, **settings})
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer

    return make


TORCH: dict[str, dict[str, Any]] = {
    "Adam": {},
    "AdamW": {"amsgrad": True},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adagrad": {"lr_decay": 0.1},
    "Adadelta": {},
    "ASGD": {"t0": 1},
    "Rprop": {},
    "Adafactor": {},
}
MAKERS: dict[str, Callable[[list[Any]], torch.optim.Optimizer]] = {
    name: _of("torch.optim", name, **settings) for name, settings in TORCH.items()
}
MAKERS["AdamW fused"] = _of("torch.optim", "AdamW", fused=True)
MAKERS["AdamW foreach, lr a tensor"] = _of("torch.optim", "AdamW", foreach=False, lr=torch.tensor(0.01))
MAKERS["transformers Adafactor"] = lambda p: Adafactor(
    p, lr=0.01, relative_step=False, scale_parameter=False, beta1=0.9
)
MAKERS["transformers Adafactor, own schedule"] = lambda p: Adafactor(p, scale_parameter=True, relative_step=True)
MAKERS["S2SAM"] = lambda p: S2SAM(p, torch.optim.AdamW, rho=0.0, lr=0.01)  # it is the state that counts
MAKERS["Lion"] = _of("lion_pytorch", "Lion")
MAKERS["GaLore AdamW"] = _of("galore_torch", "GaLoreAdamW")
for name in ("SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"):
    MAKERS[name] = _of("schedulefree", name)
for name in ("Adam", "AdamW", "Lion", "RMSprop", "Adagrad", "AdEMAMix"):
    for bits in ("8bit", "32bit"):
        if name + bits != "AdEMAMix32bit":  # fails by itself on a CPU
            MAKERS[f"{name}{bits}"] = _of("bitsandbytes.optim", f"{name}{bits}")
MAKERS["PagedAdamW8bit"] = _of("bitsandbytes.optim", "PagedAdamW8bit")
MAKERS["SGD8bit"] = _of("bitsandbytes.optim", "SGD8bit", momentum=0.9)

EVERY = pytest.mark.parametrize("name", MAKERS)


def step(optimizer: Any, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """What an optimizer adds to a parameter."""
    before = parameter.detach().clone()
    parameter.grad = gradient.clone()
    optimizer.step()
    return parameter.detach() - before


def trained(make: Any, steps: int = 20, drift: float = 0.3) -> tuple[Any, nn.Parameter, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(K, generator=generator))
    optimizer = make([parameter])
    for _ in range(steps):
        step(optimizer, parameter, torch.randn(K, generator=generator) + drift)
    return optimizer, parameter, generator


@EVERY
def test_weights_that_stay_step_as_if_nothing_had_happened(name: str) -> None:
    """Bit for bit, also in 8 bits: their codes are not touched."""
    (a, moved, _), (b, still, _) = trained(MAKERS[name]), trained(MAKERS[name])
    indices = torch.arange(7, K, 10)
    optimizer_state.check(a, [moved])
    with torch.no_grad():
        moved[indices] = 0.0
    optimizer_state.forget(a, moved, indices)
    gradient = torch.randn(K, generator=torch.Generator().manual_seed(1))
    stay = torch.ones(K, dtype=torch.bool).index_fill_(0, indices, False)
    difference = (step(a, moved, gradient) - step(b, still, gradient))[stay].abs().max()
    clipped = "Adafactor" in name  # its step is divided by the size of the whole step
    assert float(difference) <= (2e-3 if clipped else 0.0)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "Rprop"])  # a step size of each weight's own
def test_a_new_weight_starts_at_the_pace_of_its_layer(name: str) -> None:
    """Gradients of chance for all: in thirty steps a new weight goes as far as the others, not ten times as far."""
    optimizer, parameter, generator = trained(MAKERS[name], 100, drift=0.0)
    new = torch.arange(0, K, 2)
    with torch.no_grad():
        parameter[new] = 0.0
    optimizer_state.forget(optimizer, parameter, new)
    start = parameter.detach().clone()
    longest = torch.zeros(2)
    for _ in range(30):
        moved = step(optimizer, parameter, torch.randn(K, generator=generator)).abs()
        longest = torch.stack([moved[0::2].mean(), moved[1::2].mean()]).maximum(longest)
    ways = (parameter.detach() - start).abs()
    assert 0.6 * float(ways[1::2].mean()) < float(ways[0::2].mean()) < 1.4 * float(ways[1::2].mean())
    assert float(longest[0]) < 1.3 * float(longest[1])


@pytest.mark.parametrize("name", ["SGD", "Lion", "SGDScheduleFree", "Rprop", "Lion32bit", "Lion8bit", "SGD8bit"])
def test_without_a_second_moment_the_first_step_is_that_of_a_new_parameter(name: str) -> None:
    optimizer, parameter, _ = trained(MAKERS[name])
    indices = torch.arange(3, K, 5)
    with torch.no_grad():
        parameter[indices] = 0.5
    optimizer_state.forget(optimizer, parameter, indices)
    gradient = torch.randn(K, generator=torch.Generator().manual_seed(1))
    fresh = nn.Parameter(torch.full((K,), 0.5))
    expected = step(MAKERS[name]([fresh]), fresh, gradient)
    if name == "SGDScheduleFree":  # y moves by lr (1 - beta (1 - c)) at a fresh start, where c = 1
        expected = expected * float(optimizer_share(optimizer))
    assert torch.allclose(step(optimizer, parameter, gradient)[indices], expected[indices], rtol=1e-4, atol=1e-6)


def optimizer_share(optimizer: Any) -> float:
    """Of schedule-free's step, what y makes of it at once: 1 - beta (1 - c), c = 1 / (k + 1)."""
    group = optimizer.param_groups[0]
    return float(1 - group["momentum"] * (1 - 1 / (group["k"] + 1)))


@pytest.mark.parametrize(("name", "like"), [("AdamW32bit", "AdamW"), ("AdamW8bit", "AdamW"), ("Adam32bit", "Adam")])
def test_bitsandbytes_goes_on_as_torch_does(name: str, like: str) -> None:
    """The same exchange under both: equal ways afterwards, in 8 bits to a few hundredths of them."""
    ways = {}
    for which, make in ((name, MAKERS[name]), (like, _of("torch.optim", like))):
        optimizer, parameter, generator = trained(make, 100)
        indices = torch.arange(0, K, 4)
        with torch.no_grad():
            parameter[indices] = 0.0
        start = parameter.detach().clone()
        optimizer_state.forget(optimizer, parameter, indices)
        for _ in range(10):
            step(optimizer, parameter, torch.randn(K, generator=generator))
        ways[which] = (parameter.detach() - start)[indices]
        assert optimizer_state.pace(optimizer, parameter).rate == pytest.approx(0.01)
    error = (ways[name] - ways[like]).norm() / ways[like].norm()
    assert float(error) < (0.1 if "8bit" in name else 1e-3)


@pytest.mark.parametrize("name", [name for name in MAKERS if "Adafactor" not in name])  # its step is relative to all
def test_a_parameter_that_changes_its_size_keeps_what_is_known_of_those_that_stay(name: str) -> None:
    (a, resized, _), (b, still, _) = trained(MAKERS[name]), trained(MAKERS[name])
    kept, added = torch.arange(K - 1, -1, -3), 4000
    optimizer_state.resize(a, resized, kept, added)
    with torch.no_grad():
        values = torch.cat([resized[kept], torch.zeros(added)])
    resized.grad = None
    resized.data = values
    gradient = torch.randn(K, generator=torch.Generator().manual_seed(1))
    mine = step(a, resized, torch.cat([gradient[kept], torch.ones(added)]))[: len(kept)]
    theirs = step(b, still, gradient)[kept]
    if "8bit" in name:  # other blocks, other scales; Lion's steps are signs
        assert float((mine - theirs).norm() / theirs.norm()) < 0.1
    else:
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-7)


@EVERY
def test_the_pace_is_how_far_equal_gradients_move_a_weight_in_the_long_run(name: str) -> None:
    """Gradients of one size and sign for a long time."""
    parameter = nn.Parameter(torch.full((K,), 2.0))
    optimizer = MAKERS[name]([parameter])
    optimizer.param_groups[0] |= {"centered": False} if name == "RMSprop" else {}  # equal gradients have no variance
    moved = torch.zeros(1)
    for _ in range(500 if "RMS" in name else 60):  # which has no bias correction
        moved = step(optimizer, parameter, torch.full((K,), 3.0)).abs()
    pace = optimizer_state.pace(optimizer, parameter)
    expected = pace.rate * (1.0 if pace.by_size else 3.0)
    tolerance = 0.6 if any(part in name for part in ("Adadelta", "Rprop", "AdEMAMix", "chedule")) else 0.02
    assert float(moved.mean()) == pytest.approx(expected, rel=tolerance)
    assert pace.by_size is ("SGD" not in name)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_pace_of_an_optimizer_that_maximizes_points_uphill(name: str) -> None:
    parameter = nn.Parameter(torch.full((K,), 2.0))
    optimizer = _of("torch.optim", name, maximize=True, weight_decay=0.0)([parameter])
    moved = step(optimizer, parameter, torch.full((K,), 3.0))
    pace = optimizer_state.pace(optimizer, parameter)
    assert float(moved.mean()) == pytest.approx(-pace.rate * (1.0 if pace.by_size else 3.0))


def test_a_momentum_that_forgets_nothing_has_a_pace() -> None:
    parameter = nn.Parameter(torch.ones(K))
    optimizer = _of("torch.optim", "SGD", momentum=1.0)([parameter])
    step(optimizer, parameter, torch.ones(K))
    assert optimizer_state.pace(optimizer, parameter).rate == pytest.approx(10.0)


@pytest.mark.parametrize("bits", ["8bit", "4bit", "Fp8"])
def test_torchaos_states_are_changed_in_place(bits: str) -> None:
    """Without its step, which compiles for a minute."""
    pytest.importorskip("torchao.optim")
    maker = importlib.import_module("torchao.optim")
    parameter = nn.Parameter(torch.zeros(K))
    optimizer = getattr(maker, f"AdamW{bits}")([parameter], lr=0.01)
    state = optimizer.state[parameter]
    whole = torch.rand(K, generator=torch.Generator().manual_seed(0))
    state["step"] = torch.tensor(500.0)
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        state[name] = optimizer._new_buffer(parameter, signed)
        state[name].copy_(whole)
    before = {name: state[name].dequantize() for name in ("exp_avg", "exp_avg_sq")}
    optimizer_state.check(optimizer, [parameter])
    indices, stay = torch.arange(5), torch.arange(5, K)
    optimizer_state.forget(optimizer, parameter, indices)
    after = {name: state[name].dequantize() for name in ("exp_avg", "exp_avg_sq")}
    assert not after["exp_avg"][indices].any()
    assert after["exp_avg_sq"][indices].mean() == pytest.approx(0.5, rel=0.2)
    for name in before:
        assert float((before[name][stay] - after[name][stay]).abs().max()) < (1e-6 if bits == "8bit" else 0.1)
    assert optimizer_state.pace(optimizer, parameter).rate == pytest.approx(0.01)
    found = optimizer_state.momenta(optimizer, [parameter]).get(parameter)
    assert found is not None
    assert torch.equal(found, after["exp_avg"])
