"""Peers of STDO that the package does not ship, on its own stages: EMT-style training and CaFM modulation.

Both are our own short versions of what the papers describe, not their code.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_efficient.video.encode.fit import Fit
from hf_efficient.video.encode.overfit import LAST_LEARNING_RATE, Recipe, on_patches, save_checkpoint
from hf_efficient.video.encode.patch_store import PatchStore
from hf_efficient.video.encode.training_plan import GENERAL, TrainingPlan
from hf_efficient.video.networks.backbones.wdsr import WDSR
from hf_efficient.video.networks.weights import add_weight_norm, fold_weight_norm

EMT_SHARE = 0.2  # of the patches, the hardest (Li et al., ECCV 2022)


def hardest(errors: np.ndarray, share: float) -> np.ndarray:
    """Sorted indices of the hardest `share` of the patches, as EMT trains on."""
    count = max(1, round(share * len(errors)))
    return np.sort(np.argsort(-errors, kind="stable")[:count])


class HardestFifth(TrainingPlan):
    """Half of the steps on everything, half on the hardest fifth of the patches, one network."""

    def chosen_patches(self) -> dict[str, np.ndarray]:
        errors, rng, most = self.errors.ravel(), np.random.default_rng(self.settings.seed), self.settings.max_patches
        chosen = {GENERAL: np.arange(errors.size), "expert-0": hardest(errors, EMT_SHARE)}
        return {name: np.sort(rng.permutation(numbers)[:most]) for name, numbers in chosen.items()}


class EMT(Fit):
    """method="single" with EMT's patches."""

    plan_class = HardestFifth


class Modulated(nn.Module):
    """A WDSR shared by k stretches of time; each has a factor for every output channel of every layer (CaFM)."""

    def __init__(self, shared: WDSR, k: int) -> None:
        super().__init__()
        self.shared, self.chunk = shared, 0
        self.layers = [m for m in shared.modules() if isinstance(m, nn.Conv2d)]
        self.gamma = nn.ParameterList(nn.Parameter(torch.zeros(k, layer.out_channels)) for layer in self.layers)
        for layer, gamma in zip(self.layers, self.gamma, strict=True):
            layer.register_forward_hook(lambda _, __, y, g=gamma: y * (1 + g[self.chunk])[:, None, None])

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        return self.shared(x, trim)

    def merged(self, target: WDSR, chunk: int) -> WDSR:
        """The plain network of one stretch: its factors go into the weights."""
        fold_weight_norm(target)
        layers = [m for m in target.modules() if isinstance(m, nn.Conv2d)]
        with torch.no_grad():
            for layer, source, gamma in zip(layers, self.layers, self.gamma, strict=True):
                factor = 1 + gamma[chunk]
                layer.weight.copy_(source.weight * factor[:, None, None, None])
                assert layer.bias is not None, "every layer of WDSR has one"
                layer.bias.copy_(source.bias * factor)
        return target


class CaFM(Fit):
    """method="time" with shared weights: trained jointly, a stretch a step in turn. WDSR only."""

    def train(self) -> None:
        names = [name for name in self.plan.chosen_patches() if name != GENERAL]
        if all(self.checkpoint(name).exists() for name in names):
            return
        stores = [PatchStore(self.work / name) for name in names]
        s = self.settings
        net = Modulated(self.new_network(self.plan.spec(names[0]), 1000 * s.seed), len(names))  # type: ignore[arg-type]
        recipe = Recipe(s.steps, s.batch_size, s.learning_rate, 1000 * s.seed, trim=self.plan.trims(names[0]))
        optimizer = torch.optim.Adam(net.parameters(), lr=s.learning_rate, betas=recipe.betas)
        for step in range(s.steps):
            net.chunk = step % len(names)
            lr, hr = stores[net.chunk].batch(recipe.draw(step, len(stores[net.chunk])))
            for group in optimizer.param_groups:
                group["lr"] = max(recipe.rate(step), LAST_LEARNING_RATE)
            optimizer.zero_grad(set_to_none=True)
            F.l1_loss(on_patches(net, lr, hr, recipe.trim), hr).backward()
            optimizer.step()
        for m, name in enumerate(names):
            single: Any = add_weight_norm(net.merged(self.new_network(self.plan.spec(name), 0), m))  # type: ignore[arg-type]
            save_checkpoint(self.checkpoint(name), single, torch.optim.Adam(single.parameters()), s.steps)


def cafm_bytes(shared_bytes: int, net: WDSR, k: int) -> int:
    """The shared network once and k sets of factors in 16 bits."""
    return shared_bytes + 2 * k * sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d))
