"""Overfitting one network to its patches, resumable at any moment with the very same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from hf_efficient.files import write_bytes
from hf_efficient.reading import AGAIN, FLOATS, open_tensors, read_tensors
from hf_efficient.video.networks.backbones import centre
from hf_efficient.video.patches import patch_error

from .patch_store import PatchStore

LAST_LEARNING_RATE = 4e-8
# Published with 0.999: there the large gradients of the start keep steps small long after (docs/stdo.md).
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: L1, Adam, cosine decay, as the paper's code but for BETAS.

    Args:
        steps: in all.
        batch_size: patches a step, drawn with replacement.
        learning_rate: of the first step; the last has LAST_LEARNING_RATE.
        seed: of the draw; networks of one video use different ones.
        checkpoint_every: steps after which the state is saved.
        trim: the patches have all the context that the network sees, so that no layer pads.
        betas: how long Adam remembers the gradient and its square.
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
        """The patches of one step: of nothing but seed and step, so that a resumed run sees the same."""
        return np.random.default_rng([self.seed, step]).integers(0, patches, self.batch_size)


def on_patches(net: nn.Module, lr: Tensor, hr: Tensor, trim: bool) -> Tensor:
    """What a network makes of patches with their context, (B, 3, h, w), where the truth `hr` lies."""
    return centre(net(lr, trim), hr.shape[-2:])


def overfit(
    net: nn.Module,
    store: PatchStore,
    recipe: Recipe,
    checkpoint: Path,
    progress: Callable[[int], object] | None = None,
    process: tuple[int, int] = (0, 1),
) -> nn.Module:
    """Train `net` in place, from its checkpoint where there is one.

    Args:
        net: with weight norm, if it is to train with it; on the device to train on.
        store: its patches.
        recipe: the settings; a checkpoint belongs to one recipe.
        checkpoint: file of weights, optimizer and step; written under a temporary name, then renamed.
        progress: called with the number of steps done since the last call.
        process: (rank, number of processes) that share each batch; their gradients are averaged (DDP).

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
        F.l1_loss(on_patches(net, lr, hr, recipe.trim), hr).backward()
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
    """What DDP does, without its wrapper around a tiny network."""
    for parameter in net.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= processes


def save_checkpoint(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """A safetensors file, whole or not at all: the network, what Adam remembers of each parameter, and the step."""
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": tensor for name, tensor in state.items()}
    tensors["step"] = torch.tensor(step)
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    write_bytes(path, content, durable=False)  # the next one follows soon


def load_checkpoint(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Restore what `save_checkpoint` wrote; the steps done, 0 where there is no file.

    Raises:
        ValueError: the file is damaged, or of another network.
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
        for i, p in enumerate(parameters):  # laid out as they were, so that Adam computes as it did
            moments = {name: tensors[f"adam.{i}.{name}"] for name in ("exp_avg", "exp_avg_sq")}
            state[i] = {name: torch.empty_like(p.detach(), device="cpu").copy_(m) for name, m in moments.items()}
            state[i]["step"] = tensors[f"adam.{i}.step"]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(step)


@torch.no_grad()
def store_error(net: nn.Module, store: PatchStore, trim: bool, most: int = 256, batch_size: int = 32) -> float:
    """Mean squared error, 8-bit rounded, of at most so many evenly spaced patches; `trim` as in training."""
    device = next(net.buffers() if not list(net.parameters()) else net.parameters()).device
    chosen = np.unique(np.linspace(0, len(store) - 1, min(most, len(store))).round().astype(int))
    errors = []
    for start in range(0, len(chosen), batch_size):
        lr, hr = (x.to(device) for x in store.batch(chosen[start : start + batch_size]))
        errors.append(patch_error(on_patches(net, lr, hr, trim), hr))
    return float(torch.cat(errors).mean())
