"""The sequence of weights is that of the papers' equations, written down once more in numpy."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from hf_efficient.active_mask import set_active_mask
from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.optimization.loop.optimizers import MSAM, S2SAM, SAM, ZOSAM, LookSAM
from hf_efficient.optimization.training.trainer import SAMTrainer
from tests.optimization.variants import transcription
from tests.optimization.variants.transcription import MLP, Arrays, Quadratic

STEPS, BATCH = 50, 8
RHO, DELTA = 0.1, 1e-3


class Net(nn.Module):
    """The torch twin of `transcription.MLP`, as a Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10, dtype=torch.float64), nn.Linear(10, 3, dtype=torch.float64)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.second(torch.tanh(self.first(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def problem() -> tuple[Net, MLP]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    return Net(), MLP(rng.standard_normal((STEPS, BATCH, 6)), rng.integers(0, 3, (STEPS, BATCH)))


def arrays(net: nn.Module) -> Arrays:
    return [p.detach().numpy().copy() for p in net.parameters()]


def masks_of(net: nn.Module) -> Arrays:
    """Half of the entries of the weight matrices live."""
    rng = np.random.default_rng(1)
    return [(rng.random(p.shape) < 0.5) if p.ndim == 2 else np.ones(p.shape, bool) for p in net.parameters()]


def declare(net: nn.Module, masks: Arrays) -> None:
    for p, mask in zip(net.parameters(), masks):
        if not mask.all():
            set_active_mask(p, torch.from_numpy(mask))


def directions_of(shapes: list[tuple[int, ...]], m: int, masks: Arrays | None = None) -> Callable[[int], list[Arrays]]:
    """z_1 ... z_m of a step, from the documented seeds (0, step, i, 0); with masks, on active entries only."""

    def directions(t: int) -> list[Arrays]:
        found = []
        for i in range(m):
            seed = np.random.SeedSequence([0, t, i, 0]).generate_state(1, np.uint64)[0]
            generator, z = torch.Generator().manual_seed(int(seed)), []
            for k, shape in enumerate(shapes):
                mask = np.ones(shape, bool) if masks is None else masks[k]
                count = shape if mask.all() else (int(mask.sum()),)
                dense = np.zeros(shape)
                dense[mask] = torch.empty(count, dtype=torch.float64).normal_(generator=generator).numpy().ravel()
                z.append(dense)
            found.append(z)
        return found

    return directions


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "momentum": (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}, transcription.SGD),
    "momentum_decay": (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.01}, transcription.SGD),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.0}, transcription.AdamW),
    "adamw_decay": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}, transcription.AdamW),
}
TORCH: dict[str, Callable[..., Any]] = {
    "sam": SAM,
    "asam": lambda *a, **k: SAM(*a, adaptive=True, **k),
    "s2sam": S2SAM,
    "zosam": lambda *a, **k: ZOSAM(*a, num_queries=3, **k),
    "zosam, delta": lambda *a, **k: ZOSAM(*a, num_queries=3, delta=DELTA, **k),
    "zosam, one direction": ZOSAM,
    "guided": lambda *a, **k: ZOSAM(*a, num_queries=3, guided=True, **k),
    "guided, one direction": lambda *a, **k: ZOSAM(*a, guided=True, **k),
    "looksam": lambda *a, **k: LookSAM(*a, reuse_interval=3, **k),
    "msam": MSAM,
}


def transcribed(method: str, start: Arrays, mlp: Any, optimizer: Any, masks: list[Any] | None) -> list[Arrays]:
    """The weights after every step, by the paper's equations in numpy."""
    name, _, variant = method.partition(", ")
    directions = directions_of([w.shape for w in start], 1 if variant == "one direction" else 3, masks)
    delta = DELTA if variant == "delta" else None
    return transcription.train(name, start, mlp.gradient, mlp.loss, optimizer, RHO, STEPS, masks, directions, delta)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", TORCH)
def test_torch_optimizers_follow_the_papers(method: str, optimizer: str, masked: bool) -> None:
    net, mlp = problem()
    cls, kwargs, ours = OPTIMIZERS[optimizer]
    masks = masks_of(net) if masked else None
    if masks:
        declare(net, masks)
    start = arrays(net)
    opt = TORCH[method](net.parameters(), cls, rho=RHO, **kwargs)
    expected = transcribed(method, start, mlp, ours(**kwargs), masks)
    for t in range(STEPS):
        x, y = torch.from_numpy(mlp.x[t]), torch.from_numpy(mlp.y[t])
        before = arrays(net)
        opt.perturb(lambda: net(x, y)["loss"])
        moves = t % 3 == 0 if method == "looksam" else t > 0 or method not in ("s2sam", "msam")
        assert any((a != b).any() for a, b in zip(before, arrays(net))) == moves
        net(x, y)["loss"].backward()
        opt.step()
        opt.zero_grad()
        for mine, theirs in zip(arrays(net), expected[t]):
            np.testing.assert_allclose(mine, theirs, atol=1e-6, rtol=0)
    plain = transcription.train("plain", start, mlp.gradient, mlp.loss, ours(**kwargs), RHO, STEPS)
    assert max(np.abs(a - b).max() for a, b in zip(plain[-1], expected[-1])) > 1e-3  # the equations do matter here


@pytest.mark.parametrize("method", ["sam", "s2sam", "zosam"])
def test_quadratic(method: str) -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((12, 12))
    bowl = Quadratic(root @ root.T / 12, rng.standard_normal((STEPS, 12)))
    w = nn.Parameter(torch.from_numpy(rng.standard_normal(12)))
    a, b = torch.from_numpy(bowl.a), torch.from_numpy(bowl.b)
    start = [w.detach().numpy().copy()]
    opt = TORCH[method]([w], torch.optim.SGD, rho=RHO, lr=0.1, momentum=0.9)
    expected = transcription.train(
        method, start, bowl.gradient, bowl.loss, transcription.SGD(0.1, 0.9), RHO, STEPS,
        directions=directions_of([(12,)], 3),
    )  # fmt: skip
    for t in range(STEPS):
        loss = lambda: 0.5 * (w - b[t]) @ a @ (w - b[t])
        opt.perturb(loss)
        loss().backward()
        opt.step()
        opt.zero_grad()
        np.testing.assert_allclose(w.detach().numpy(), expected[t][0], atol=1e-6, rtol=0)


TRAINER: dict[str, dict[str, Any]] = {
    "sam": {},
    "asam": {},
    "s2sam": {},
    "msam": {},
    "looksam": {"reuse_interval": 3},
    "zosam": {"num_queries": 3},
    "zosam, delta": {"method": "zosam", "num_queries": 3, "delta": DELTA},
    "zosam, one direction": {"method": "zosam"},
    "guided": {"method": "zosam", "guided": True, "num_queries": 3},
    "guided, one direction": {"method": "zosam", "guided": True},
}


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("optimizer", ["momentum_decay", "adamw_decay"])
@pytest.mark.parametrize("method", TRAINER)
def test_trainer_follows_the_papers(method: str, optimizer: str, accumulation: int, tmp_path: Any) -> None:
    net, mlp = problem()
    cls, kwargs, ours = OPTIMIZERS[optimizer]
    masks = masks_of(net)
    declare(net, masks)
    start = arrays(net)
    rows = [{"x": torch.from_numpy(x), "labels": torch.tensor(y)} for x, y in zip(mlp.x.reshape(-1, 6), mlp.y.ravel())]
    SAMTrainer(
        net, trainer_arguments(tmp_path, BATCH // accumulation, gradient_accumulation_steps=accumulation),
        train_dataset=rows, optimizers=(cls(net.parameters(), **kwargs), None),
        sam_args=SAMArguments(**{"method": method, "rho": RHO, **TRAINER[method]}),
    ).train()  # fmt: skip
    expected = transcribed(method, start, mlp, ours(**kwargs), masks)
    for mine, theirs in zip(arrays(net), expected[-1]):
        np.testing.assert_allclose(mine, theirs, atol=1e-6, rtol=0)


def trainer_arguments(folder: Any, batch: int, **kwargs: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": batch, "max_steps": STEPS, "use_cpu": True,
            "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "max_grad_norm": 0.0,
            "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", **kwargs,
        }
    )  # fmt: skip


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_that_of_pytorch_optimizer(adaptive: bool) -> None:
    peer = pytest.importorskip("pytorch_optimizer")
    net, mlp = problem()
    twin = copy.deepcopy(net)
    kwargs: Any = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    ours = SAM(net.parameters(), torch.optim.SGD, rho=RHO, adaptive=adaptive, **kwargs)
    theirs = peer.SAM(twin.parameters(), torch.optim.SGD, rho=RHO, adaptive=adaptive, **kwargs)
    for t in range(STEPS):
        x, y = torch.from_numpy(mlp.x[t]), torch.from_numpy(mlp.y[t])
        ours.perturb(lambda: net(x, y)["loss"])
        net(x, y)["loss"].backward()
        ours.step()
        ours.zero_grad()

        def closure() -> Tensor:
            theirs.zero_grad()
            loss = twin(x, y)["loss"]
            loss.backward()
            return loss

        closure()
        theirs.step(closure)
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=0)  # it takes norms in float32
