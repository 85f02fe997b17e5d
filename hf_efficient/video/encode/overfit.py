"""Overfitting one network to its patches. It can be resumed at any moment, with exactly the same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from hf_efficient.files import write_bytes
from hf_efficient.reading import AGAIN, FLOATS, open_tensors, read_tensors
from hf_efficient.video.networks.backbones.backbone import center
from hf_efficient.video.patches import squared_errors

LAST_LEARNING_RATE = 4e-8
# Published with 0.999, at which the large first gradients keep steps small for long (docs/stdo.md).
BETAS = (0.9, 0.95)


class Patches(Protocol):
    """Where patches come from: `PatchStore`, or others of this form."""

    def __len__(self) -> int:
        """How many there are."""

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Patches with their context, and the true ones, as `PatchStore.batch` gives them."""


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: L1, Adam, cosine decay, as the paper's code but for BETAS.

    Args:
        steps: of the whole training.
        batch_size: patches in a step, drawn with replacement.
        learning_rate: of the first step; the last has LAST_LEARNING_RATE.
        seed: of the draw; each network of a video has its own.
        checkpoint_every: steps between saved states.
        trim: no layer pads, since the context of the patches covers the network's receptive field.
        betas: Adam's decay rates of the gradient's running mean and mean square.
    """

    steps: int
    batch_size: int = 16
    learning_rate: float = 1e-3
    seed: int = 0
    checkpoint_every: int = 100
    trim: bool = False
    betas: tuple[float, float] = BETAS

    def rate(self, step: int) -> float:
        """Cosine from `learning_rate` to LAST_LEARNING_RATE."""
        cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
        return LAST_LEARNING_RATE + (self.learning_rate - LAST_LEARNING_RATE) * cosine

    def draw(self, step: int, patches: int) -> np.ndarray:
        """The patches of one step. They depend on seed and step alone, so that a resumed run draws the same."""
        return np.random.default_rng([self.seed, step]).integers(0, patches, self.batch_size)


def on_patches(net: nn.Module, lr: Tensor, hr: Tensor, trim: bool) -> Tensor:
    """The enlargement of patches with context, (B, 3, h, w), cropped to the true patches `hr`."""
    return center(net(lr, trim), hr.shape[-2:])


def l1(enlarged: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute error, the paper's loss."""
    return F.l1_loss(enlarged, hr)


def overfit(
    net: nn.Module,
    store: Patches,
    recipe: Recipe,
    checkpoint: Path,
    progress: Callable[[int], object] | None = None,
    process: tuple[int, int] = (0, 1),
    loss: Callable[[Tensor, Tensor], Tensor] = l1,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> nn.Module:
    """Train `net` in place. If there is a checkpoint, go on from it.

    Args:
        net: on the device to train on; with weight norm, if it is to train with it.
        store: its patches.
        recipe: how to train; a checkpoint belongs to one recipe.
        checkpoint: file of weights, optimizer and step; written under a temporary name, then renamed.
        progress: called with the number of steps since the last call.
        process: (rank, number of processes) of those that share each batch; their gradients are averaged.
        loss: of enlarged patches and true ones, both (B, 3, h, w).
        penalty: of the network itself, added to the loss.

    Returns:
        The trained network.
    """
    rank, processes = process
    device = next(net.parameters()).device
    net.to(memory_format=torch.channels_last)  # convolutions of few channels are a sixth faster so
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.learning_rate, betas=recipe.betas)
    done = load_checkpoint(checkpoint, net, optimizer)
    if progress is not None:
        progress(done)
    net.train()
    for step in range(done, recipe.steps):
        indices = np.array_split(recipe.draw(step, len(store)), processes)[rank]
        lr, hr = (x.to(device, memory_format=torch.channels_last) for x in store.batch(indices))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        optimizer.zero_grad(set_to_none=True)
        cost = loss(on_patches(net, lr, hr, recipe.trim), hr)
        (cost if penalty is None else cost + penalty(net)).backward()
        if processes > 1:
            average_gradients(net, processes)
        optimizer.step()
        last = step + 1 == recipe.steps
        if rank == 0 and (last or (step + 1) % recipe.checkpoint_every == 0):
            save_checkpoint(checkpoint, net, optimizer, step + 1)
        if progress is not None:
            progress(1)
    return net.eval()


def average_gradients(net: nn.Module, processes: int) -> None:
    """Average gradients over the processes, as DDP does, without its wrapper around a tiny network."""
    for parameter in net.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= processes


def save_checkpoint(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write network, state of Adam and step to a safetensors file, which appears whole or not at all."""
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": tensor for name, tensor in state.items()}
    tensors["step"] = torch.tensor(step)
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    write_bytes(path, content, durable=False)  # the next one follows soon


def load_checkpoint(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Restore what `save_checkpoint` wrote, and return the steps done; 0 if there is no file.

    Raises:
        ValueError: the file is damaged, or belongs to another network.
    """
    if not path.exists():
        return 0
    parameters = list(net.parameters())
    expected: dict[str, Sequence[int]] = {f"net.{name}": tensor.shape for name, tensor in net.state_dict().items()}
    with open_tensors(path) as file:
        remembers = optimizer is not None or any(name.startswith("adam.") for name in file.keys())  # noqa: SIM118
    if remembers:
        for i, p in enumerate(parameters):
            expected |= {f"adam.{i}.step": (), f"adam.{i}.exp_avg": p.shape, f"adam.{i}.exp_avg_sq": p.shape}
    tensors = read_tensors(path, {**expected, "step": ()}, (*FLOATS, "I64"))
    step = tensors.pop("step")
    if step.dtype != torch.int64 or step < 0:
        raise ValueError(f"{path} is damaged: step={step.item()}, expected a whole number >= 0. {AGAIN}")
    net.load_state_dict({name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")})
    if optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for i, p in enumerate(parameters):  # in the memory layout of the parameters, so that Adam computes as before
            moments = {name: tensors[f"adam.{i}.{name}"] for name in ("exp_avg", "exp_avg_sq")}
            state[i] = {name: torch.empty_like(p.detach(), device="cpu").copy_(m) for name, m in moments.items()}
            state[i]["step"] = tensors[f"adam.{i}.step"]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(step)


@torch.no_grad()
def store_error(net: nn.Module, store: Patches, trim: bool, most: int = 256, batch_size: int = 32) -> float:
    """Mean squared error of a network on patches that are spaced evenly, rounded to 8 bits; white is 1.

    Args:
        net: the network.
        store: its patches.
        trim: as in training.
        most: the most patches that are measured.
        batch_size: patches that are run at once.
    """
    device = next(net.buffers() if not list(net.parameters()) else net.parameters()).device
    chosen = np.unique(np.linspace(0, len(store) - 1, min(most, len(store))).round().astype(int))
    errors = []
    for start in range(0, len(chosen), batch_size):
        lr, hr = (x.to(device) for x in store.batch(chosen[start : start + batch_size]))
        errors.append(squared_errors(on_patches(net, lr, hr, trim), hr))
    return float(torch.cat(errors).mean())
