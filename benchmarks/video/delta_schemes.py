"""Other ways to send what a video changes of a general network, for `delta.py`: low rank, few weights, by segment.

`low_rank`: W0 + U V for each layer, scales and biases beside it, both factors in whole steps and trained for their rate
(after LoRA, Hu et al., 2021). `sparse`: the few weights that training moves most, trained again alone. `srvc`: the
scheme of Khani et al., ICCV 2021: for each stretch of time the network of the stretch before, of which a small share of
the weights is replaced, those that training moves most, trained again alone; values in 16 bits. `emt`: the scheme of Li
et al., ECCV 2022: the same with a larger share for the first stretch, trained on the hardest patches of each stretch.
`cafm`: the scheme of Liu et al., ICCV 2021: one network whose features have a factor for every channel and stretch of
time. All are our own short versions, all start from the general network; EMT's own start is a meta-learned one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.video.stdo_baselines import EMT_SHARE, Modulated, cafm_bytes, hardest
from hf_efficient.video.encode.overfit import Patches, Recipe, on_patches, overfit
from hf_efficient.video.networks.backbones.luma import luma, luma_error
from hf_efficient.video.networks.delta import Delta, approximate_bits, changed, convolutions, parts, quantized
from hf_efficient.video.networks.level_coding import encode_levels
from hf_efficient.video.networks.weights import add_weight_norm, as_stored, stored_bytes

FACTOR_STEP = 0.25  # of both factors of a low rank; their product is in standard deviations of the layer's weights
Sent = tuple[int, list[nn.Module]]
"""Bytes, and the network of every stretch of time."""


class Part:
    """Some of the patches of a store.

    Args:
        store: of all.
        numbers: of those that belong to it.
    """

    def __init__(self, store: Patches, numbers: np.ndarray) -> None:
        self.store, self.numbers = store, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """As `PatchStore.batch`."""
        return self.store.batch(self.numbers[indices])


class LowRank(nn.Module):
    """A network whose layers change by a product of two thin matrices; scales and biases are those of `Delta`.

    Args:
        base: the network; it is not changed.
        rank: columns of the one, rows of the other.
    """

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        self._base, self.rest = (base,), Delta(base, weights=False)
        layers = convolutions(base)
        self.spread = [float(layer.weight.std()) for layer in layers]
        self.left = nn.ParameterList(nn.Parameter(torch.zeros(len(layer.weight), rank)) for layer in layers)
        self.right = nn.ParameterList(nn.Parameter(torch.randn(rank, layer.weight[0].numel())) for layer in layers)

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor of the network as a player would have it."""
        base = self._base[0]
        levels = [None if ratio is None else quantized(ratio) for ratio in self.rest.ratios()]
        found, names = changed(base, levels, self.rest.steps), {id(p): name for name, p in base.named_parameters()}
        for layer, spread, left, right in zip(convolutions(base), self.spread, self.left, self.right, strict=True):
            product = quantized(left / FACTOR_STEP) @ quantized(right / FACTOR_STEP) * FACTOR_STEP**2
            found[names[id(layer.weight)]] = found[names[id(layer.weight)]] + spread * product.view_as(layer.weight)
        return found

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        return torch.func.functional_call(self._base[0], self.weights(), (x, trim))

    def bits(self) -> Tensor:
        """What the changes cost, smoothly."""
        factors = [approximate_bits(f / FACTOR_STEP) for f in (*self.left, *self.right)]
        return self.rest.bits() + torch.stack(factors).sum()

    @torch.no_grad()
    def packed(self) -> bytes:
        """All whole numbers, coded; a column that is zero needs no row."""
        tagged = []
        for (kind, *_), levels in zip(parts(self._base[0]), self.rest.levels(), strict=True):
            if kind != "weight":
                tagged.append((kind, levels))
        for left, right in zip(self.left, self.right, strict=True):
            q, other = (quantized(f / FACTOR_STEP).round().to(torch.int64).numpy() for f in (left, right))
            tagged += [("left", q), ("right", other * (np.abs(q).max(0) > 0)[:, None])]
        return encode_levels(tagged)


def low_rank(
    base: nn.Module, rank: int, store: Patches, recipe: Recipe, folder: Path, penalty: Callable[[nn.Module], Tensor]
) -> Sent:
    """Train and code `LowRank`."""
    torch.manual_seed(recipe.seed)
    net = LowRank(base, rank)
    overfit(net, store, recipe, folder / f"low-rank-{rank}.safetensors", loss=luma_error, penalty=penalty)
    return len(net.packed()), [net]


class Few(Delta):
    """A delta of which the numbers outside of a mask stay zero."""

    kept: Sequence[Tensor] | None = None

    def ratios(self) -> list[Tensor | None]:
        found = super().ratios()
        if self.kept is None:
            return found
        return [None if r is None else r * kept for r, kept in zip(found, self.kept, strict=True)]


def masks(ratios: Sequence[Tensor | None], kinds: Sequence[str], share: float) -> list[Tensor]:
    """True at the `share` of the weights with the largest |change| / h, and at all scales and biases."""
    sizes = [None if r is None else r.detach().abs() for r in ratios]
    weights = torch.cat([s.flatten() for s, k in zip(sizes, kinds, strict=True) if k == "weight" and s is not None])
    least = weights.topk(max(1, round(share * len(weights)))).values[-1]
    return [
        s >= least if k == "weight" and s is not None else torch.tensor(True) for s, k in zip(sizes, kinds, strict=True)
    ]


def sparse(base: nn.Module, share: float, store: Patches, recipe: Recipe, folder: Path) -> Sent:
    """Half of the steps for all weights, half for the few; coded as deltas are, which makes zeros cheap."""
    half = replace(recipe, steps=recipe.steps // 2)
    first, net = Delta(base), Few(base)
    overfit(first, store, half, folder / f"sparse-{share}-all.safetensors", loss=luma_error)
    kinds = [kind for kind, *_ in parts(base)]
    net.kept = masks(first.ratios(), kinds, share)
    overfit(net, store, half, folder / f"sparse-{share}.safetensors", loss=luma_error)
    return len(encode_levels(list(zip(kinds, net.levels(), strict=True)))), [net]


class Replaced(nn.Module):
    """A network of which chosen weights move, all together in one vector."""

    def __init__(self, base: nn.Module, chosen: Tensor | None = None) -> None:
        super().__init__()
        self._base, self._chosen = (base,), chosen
        size = sum(p.numel() for p in base.parameters())
        self.change = nn.Parameter(torch.zeros(size if chosen is None else len(chosen)))

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor."""
        base = self._base[0]
        flat = torch.cat([p.detach().flatten() for p in base.parameters()])
        flat = flat + self.change if self._chosen is None else flat.index_add(0, self._chosen, self.change)
        cut = flat.split([p.numel() for p in base.parameters()])
        return {name: part.view_as(p) for (name, p), part in zip(base.named_parameters(), cut, strict=True)}

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        return torch.func.functional_call(self._base[0], self.weights(), (x, trim))


def position_bytes(chosen: int, all_of_them: int) -> float:
    """The least bytes that say which were chosen: log2 of the binomial coefficient."""
    log = math.lgamma(all_of_them + 1) - math.lgamma(chosen + 1) - math.lgamma(all_of_them - chosen + 1)
    return log / math.log(2) / 8


def replaced_in_turn(
    fresh: Callable[[], Any], shares: Sequence[float], stores: Sequence[Patches], recipe: Recipe, folder: Path
) -> Sent:
    """For each stretch half of its steps for all weights, half for the share of them that moved most.

    Args:
        fresh: makes the network that the first stretch starts from.
        shares: of the weights, for each stretch.
        stores: the patches of each stretch.
        recipe: of all stretches together.
        folder: of the checkpoints.
    """
    each, net = replace(recipe, steps=recipe.steps // len(stores) // 2), fresh()
    size, nets, total = 0.0, [], sum(p.numel() for p in net.parameters())
    for n, (share, store) in enumerate(zip(shares, stores, strict=True)):
        own = replace(each, seed=recipe.seed + 1 + n)
        tried = Replaced(net)
        overfit(tried, store, own, folder / f"replaced-{n}-all.safetensors", loss=luma_error)
        chosen = tried.change.detach().abs().topk(max(1, round(share * total))).indices
        moved = Replaced(net, chosen)
        overfit(moved, store, own, folder / f"replaced-{n}.safetensors", loss=luma_error)
        moved.change.data = moved.change.data.half().float()
        weights = {name: tensor.detach() for name, tensor in moved.weights().items()}
        net = fresh()
        net.load_state_dict(weights)
        nets.append(net)
        size += 2 * len(chosen) + position_bytes(len(chosen), total)
    return math.ceil(size), nets


def srvc(fresh: Callable[[], Any], share: float, stores: Sequence[Patches], recipe: Recipe, folder: Path) -> Sent:
    """The same share of the weights for each stretch, trained on all of its patches."""
    return replaced_in_turn(fresh, [share] * len(stores), stores, recipe, folder)


def emt(
    fresh: Callable[[], Any], shares: Sequence[float], stores: Sequence[Patches], recipe: Recipe, folder: Path
) -> Sent:
    """A share of the weights for each stretch, trained on the patches that the start enlarges worst."""
    start = fresh()
    hard = [Part(store, hardest(patch_luma_errors(start, store, recipe), EMT_SHARE)) for store in stores]
    return replaced_in_turn(fresh, shares, hard, recipe, folder)


@torch.no_grad()
def patch_luma_errors(net: nn.Module, store: Patches, recipe: Recipe) -> np.ndarray:
    """(N,) float32, squared error of luma of each patch of a store."""
    found = []
    for numbers in np.array_split(np.arange(len(store)), math.ceil(len(store) / recipe.batch_size)):
        lr, hr = store.batch(numbers)
        found.append((luma(on_patches(net, lr, hr, recipe.trim)) - luma(hr)).square().flatten(1).mean(1))
    return torch.cat(found).numpy()


def cafm_of_general(base: nn.Module, stores: Sequence[Patches], recipe: Recipe, folder: Path) -> Sent:
    """The general network as the body, which costs nothing; scales and biases for each stretch, coded together."""
    kinds, tagged, nets = [kind for kind, *_ in parts(base)], [], list[nn.Module]()
    for n, store in enumerate(stores):
        net = Delta(base, weights=False)
        own = replace(recipe, steps=recipe.steps // len(stores), seed=recipe.seed + 1 + n)
        overfit(net, store, own, folder / f"cafm-{len(stores)}-{n}.safetensors", loss=luma_error)
        tagged += list(zip(kinds, net.levels(), strict=True))
        nets.append(net)
    return len(encode_levels(tagged)), nets


class Alternating:
    """The stretches in turn, so that one step of a shared network sees one of them, and says which."""

    def __init__(self, stores: Sequence[Patches], net: Modulated) -> None:
        self.stores, self.net, self.turn = stores, net, 0

    def __len__(self) -> int:
        return min(len(store) for store in self.stores)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """As `PatchStore.batch`."""
        self.net.chunk = self.turn % len(self.stores)
        self.turn += 1
        return self.stores[self.net.chunk].batch(indices)


def cafm(fresh: Callable[[], Any], stores: Sequence[Patches], recipe: Recipe, folder: Path) -> Sent:
    """All weights trained jointly with the factors; sent in 8 bits, factors in 16."""
    net = Modulated(add_weight_norm(fresh().requires_grad_(True)), len(stores))
    together = Alternating(stores, net)
    overfit(net, together, recipe, folder / f"cafm-all-{len(stores)}.safetensors", loss=luma_error)
    nets: list[nn.Module] = []
    for n in range(len(stores)):
        target = add_weight_norm(fresh())
        nets.append(as_stored(net.merged(target, n), "int8"))
    return cafm_bytes(stored_bytes(fresh(), "int8"), fresh(), len(stores)), nets


def stretches(frames: np.ndarray, total: int, count: int) -> list[np.ndarray]:
    """Indices of the patches of each of `count` equal stretches of time.

    Args:
        frames: (N,) frame of every patch.
        total: frames of the video.
        count: of the stretches.
    """
    of_patch = frames * count // total
    return [np.flatnonzero(of_patch == n) for n in range(count)]


def stretch_stores(store: Patches, frames: np.ndarray, total: int, count: int) -> list[Patches]:
    """The same as stores."""
    return [Part(store, numbers) for numbers in stretches(frames, total, count)]
