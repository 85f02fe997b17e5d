"""What `sam_generalization.py` trains: data, networks, masks and methods, each run fixed by its seed."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models.small_networks import SmallResNet, SmallViT
from examples import real_data
from hf_efficient import BiDSTConfig, train_sparsely
from hf_efficient.active_mask import set_active_mask
from hf_efficient.methods import SPARSITY, settings_of
from hf_efficient.optimization.engine.batch_norm import recalibrate_batch_norm
from hf_efficient.optimization.loop.optimizers import MSAM, S2SAM, SAM, ZOSAM, LookSAM
from hf_efficient.optimization.loop.perturbing_optimizer import PerturbingOptimizer
from hf_efficient.optimization.sharpness import sharpness

TEST_IMAGES, CORRUPTED_IMAGES = 5000, 500
SHARPNESS_RHO = 0.1
MINILM_LAYERS = 1  # that are trained, with the head; two would take twice as long
#: What is measured unless `--methods` says more.
MAIN = ("plain", "sam", "s2sam", "zosam", "guided_zosam")


#: name -> optimizer from (parameters, base class, rho, base arguments)
METHODS: dict[str, Callable[..., Any]] = {
    "plain": lambda params, base, rho, **kwargs: base(params, **kwargs),
    "sam": SAM,
    "s2sam": S2SAM,
    "zosam": functools.partial(ZOSAM, delta=1e-3),  # a step per weight, as in the paper
    "guided_zosam": functools.partial(ZOSAM, guided=True),
    "asam": functools.partial(SAM, adaptive=True),
    "looksam": LookSAM,
    "msam": MSAM,
}


@dataclass(frozen=True)
class Setting:
    """A task.

    Args:
        network: "resnet", "vit" or "minilm" (its top layer and a head; see `minilm_top`).
        data: "fashion_mnist", or a function of `real_data` that returns texts.
        size: training examples.
        epochs: passes over them.
        noise: share of training labels that are replaced by a random other class.
        sparsity: share of the inner weights that are inactive, uniform per layer.
        topology: "static" (fixed at random), or "rigl" or "mest", exchanging weights every 20 steps.
    """

    network: str = "resnet"
    data: str = "fashion_mnist"
    size: int = 500
    epochs: int = 20
    noise: float = 0.0
    sparsity: float = 0.0
    topology: str = "static"
    batch: int = 32


SETTINGS = {
    "resnet, 500, 40 % noise": Setting(noise=0.4),
    "resnet, 500": Setting(),
    "resnet, 500, 95 % sparse": Setting(sparsity=0.95),
    "vit, 500": Setting("vit"),
    "resnet, 500, 98 % sparse": Setting(sparsity=0.98),
    "resnet, 500, 90 % sparse": Setting(sparsity=0.9),
    "resnet, 500, 95 % RigL": Setting(sparsity=0.95, topology="rigl"),
    "resnet, 500, 95 % MEST": Setting(sparsity=0.95, topology="mest"),
    "minilm, rotten tomatoes, 256": Setting("minilm", "rotten_tomatoes", 256, 4, batch=16),
    "resnet, 500, 20 % noise": Setting(noise=0.2),
    "resnet, 500, 60 % noise": Setting(noise=0.6),
    "vit, 500, 40 % noise": Setting("vit", noise=0.4),
    "resnet, 500, 90 % RigL": Setting(sparsity=0.9, topology="rigl"),
    "resnet, 500, 98 % RigL": Setting(sparsity=0.98, topology="rigl"),
    "resnet, 500, 90 % MEST": Setting(sparsity=0.9, topology="mest"),
    "resnet, 500, 98 % MEST": Setting(sparsity=0.98, topology="mest"),
    "resnet, 100": Setting(size=100, epochs=50, batch=16),
    "minilm, reuters r52, 512": Setting("minilm", "reuters_r52", 512, 4, batch=16),
    "minilm, newsgroups, 512": Setting("minilm", "newsgroups", 512, 4, batch=16),
    "resnet, 3000": Setting(size=3000, epochs=6, batch=64),
    "vit, 100": Setting("vit", size=100, epochs=50, batch=16),
}  # fmt: skip


def train_and_test(
    setting: Setting, method: Callable[..., Any], rho: float, seed: int, tuning: bool
) -> dict[str, float]:
    """One run: accuracy on validation data if tuning, else on test data, clean and corrupted."""
    x, y, test_x, test_y = data(setting, seed, tuning)
    torch.manual_seed(seed)
    net = network(setting, int(test_y.max()) + 1)
    masks = fixed_masks(net, setting.sparsity, seed) if setting.topology == "static" else []
    if setting.topology != "static":
        net = dynamic(net, setting, seed)
    params = [p for p in net.parameters() if p.requires_grad]
    if setting.network == "resnet":
        optimizer = method(params, torch.optim.SGD, rho=rho, lr=0.1, momentum=0.9, weight_decay=5e-4)
    else:
        lr = 1e-3 if setting.network == "vit" else 3e-4
        optimizer = method(params, torch.optim.AdamW, rho=rho, lr=lr, weight_decay=0.05)
    steps = setting.epochs * (len(x) // setting.batch)
    if setting.topology != "static":
        train_sparsely(net, optimizer, steps)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.param_groups[0]["lr"], steps, cycle_momentum=False
    )
    order = np.random.default_rng(seed)
    net.train()
    for step in range(steps):
        if step % (len(x) // setting.batch) == 0:
            shuffled, position = torch.from_numpy(order.permutation(len(x))), 0
        rows, position = shuffled[position : position + setting.batch], position + setting.batch
        loss = functools.partial(loss_of, net, x[rows], y[rows])
        if isinstance(optimizer, PerturbingOptimizer):
            optimizer.perturb(loss)
        loss().backward()
        for p, mask in masks:
            p.grad.mul_(mask)  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    recalibrate_batch_norm(net, x.split(100))
    net.eval()
    result = {"accuracy": accuracy(net, test_x, test_y), "train_accuracy": accuracy(net, x, y)}
    if not tuning:
        result["sharpness"] = sharpness(net, [(x, y)], SHARPNESS_RHO, loss_of=lambda net, batch: loss_of(net, *batch))
    if not tuning and setting.data == "fashion_mnist":
        part = slice(0, CORRUPTED_IMAGES)
        result["corrupted"] = float(
            np.mean([accuracy(net, c(test_x[part]), test_y[part]) for c in CORRUPTIONS.values()])
        )
    return result


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((torch.cat([net(part).argmax(1) for part in x.split(500)]) == y).float().mean())


def data(setting: Setting, seed: int, tuning: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training subset of the seed (labels with noise), and validation or test data (labels without)."""
    x, y, test_x, test_y = images() if setting.data == "fashion_mnist" else _texts(setting.data)
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(x))
    chosen, held_out = picked[: setting.size], picked[setting.size : setting.size + 2000]
    labels = y[chosen].clone()
    wrong = torch.from_numpy(rng.permutation(setting.size)[: round(setting.noise * setting.size)])
    classes = int(y.max()) + 1
    labels[wrong] = (labels[wrong] + torch.from_numpy(rng.integers(1, classes, len(wrong)))) % classes
    return (x[chosen], labels, x[held_out], y[held_out]) if tuning else (x[chosen], labels, test_x, test_y)


@functools.cache
def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fashion-MNIST: training images and labels, the first test images and labels."""
    parts = []
    for train in (True, False):
        x, y = real_data.fashion_mnist(train)
        x, y = (x, y) if train else (x[:TEST_IMAGES], y[:TEST_IMAGES])
        parts += [(torch.from_numpy(x.astype(np.float32))[:, None] / 255 - 0.286) / 0.353, torch.from_numpy(y)]
    return parts[0], parts[1], parts[2], parts[3]


def network(setting: Setting, classes: int) -> nn.Module:
    match setting.network:
        case "resnet":
            return SmallResNet(8)
        case "vit":
            return SmallViT(48, 2)
    from benchmarks.models.minilm_top import MiniLMTop

    return MiniLMTop(classes, MINILM_LAYERS)


@functools.cache
def _texts(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from benchmarks.models.minilm_top import hidden_states

    return hidden_states(name, MINILM_LAYERS)


def dynamic(net: nn.Module, setting: Setting, seed: int) -> nn.Module:
    """The same inner convolutions, with a topology that moves."""
    config = BiDSTConfig(
        sparsity=setting.sparsity, topology=setting.topology, distribution="uniform", seed=seed,
        target_modules=r"stages\.(.*conv\d|[12]\.shortcut)", kernel="dense",
        **settings_of(SPARSITY, setting.topology, init="random", update_interval=20),
    )  # fmt: skip
    return get_peft_model(net, config)


def fixed_masks(net: nn.Module, sparsity: float, seed: int, inner: tuple[str, ...] = ()) -> list[tuple[Tensor, Tensor]]:
    """Random masks, declared and applied: of the weights `inner`, or of a ResNet's inner convolutions."""
    if sparsity == 0:
        return []
    rng = torch.Generator().manual_seed(seed)
    masks: list[tuple[Tensor, Tensor]] = []
    for name, p in net.named_parameters():
        if name in inner if inner else name.startswith("stages") and p.ndim == 4:
            active = torch.randperm(p.numel(), generator=rng)[: round((1 - sparsity) * p.numel())]
            mask = torch.zeros(p.numel(), dtype=torch.bool).index_fill_(0, active, True).view_as(p)
            # an active weight has fewer inputs beside it: keep the variance of the sums
            with torch.no_grad():
                p.mul_(mask / (1 - sparsity) ** 0.5)
            set_active_mask(p, mask)
            masks.append((p, mask))
    return masks


def _noise(x: Tensor) -> Tensor:
    return x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def _blur(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)


def _contrast(x: Tensor) -> Tensor:
    return x * 0.3 + x.mean((2, 3), keepdim=True) * 0.7


def _pixelate(x: Tensor) -> Tensor:
    return F.interpolate(F.interpolate(x, size=(10, 10), mode="area"), size=(28, 28), mode="nearest")


def _shift(x: Tensor) -> Tensor:
    return torch.roll(x, (3, -3), (2, 3))


#: As in CIFAR-10-C: noise, blur, contrast, pixelation; and a shift by three pixels.
CORRUPTIONS = {"noise": _noise, "blur": _blur, "contrast": _contrast, "pixelate": _pixelate, "shift": _shift}
