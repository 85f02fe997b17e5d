"""What is sent of a network: the difference to a general one, in whole steps, trained for its rate.

    W = W0 (1 + h_s q_s) + h_w q_w,   b = b0 + h_b q_b,   q = Q(change / h)

with one q_s for each output channel. Q rounds with a dead zone, the gradient passes it as if it were not there
(straight-through), and training pays for bits: error + λ Σ log2(1 + |change| / h). Scales and biases alone are the same
with all q_w = 0. The base W0 is a general network, or zero: a filter (`luma_filter`) has nothing to start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .level_coding import MOST, decode_levels, encode_levels

DEAD_ZONE = 0.65  # of a step: smaller changes are zero
#: Steps h at fineness 0: of a weight, in standard deviations of its layer's; of a layer of zeros; of scales and biases.
WEIGHT_STEP, ZERO_STEP, SCALE_STEP, BIAS_STEP = 0.2, 1 / 128, 0.02, 0.005
FINEST = 8
OVER_FIRST = 0x80  # beside the fineness: what follows of the second network and later ones is added to the first's


def quantized(ratio: Tensor) -> Tensor:
    """Q: nearest whole number, zero below DEAD_ZONE; at most MOST. The gradient is that of `ratio`."""
    levels = ratio.sign() * (ratio.abs() + (1 - DEAD_ZONE)).floor().clamp(max=MOST)
    return ratio + (levels - ratio).detach()


def approximate_bits(ratio: Tensor) -> Tensor:
    """Σ log2(1 + |change| / h): what the changes of a tensor cost, smoothly."""
    return (1 + ratio.abs()).log2().sum()


class Delta(nn.Module):
    """A network and a trainable difference to it.

    Args:
        base: the network; it is not changed.
        weights: whether single weights may change, and not only scales and biases.
        fineness: steps are 2^-fineness of their usual size, 0 to FINEST.

    Attributes:
        changes: for each tensor, in the order of `parts`, the trainable change.
    """

    def __init__(self, base: nn.Module, weights: bool = True, fineness: int = 0) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple: not a submodule, so that only changes are trained and saved
        self.weights, self.fineness = weights, fineness
        self.steps = [step * 2.0**-fineness for _, _, step in parts(base)]
        sizes = [_size(kind, tensor) for kind, tensor, _ in parts(base)]
        device = next(base.parameters()).device
        self.changes = nn.ParameterList(
            nn.Parameter(torch.zeros(size, device=device)) for size, (kind, *_) in zip(sizes, parts(base), strict=True)
            if weights or kind != "weight"
        )  # fmt: skip

    def ratios(self) -> list[Tensor | None]:
        """change / h of every part; None for weights that may not change."""
        changes, kinds = iter(self.changes), [kind for kind, *_ in parts(self._base[0])]
        return [
            next(changes) / step if self.weights or kind != "weight" else None
            for kind, step in zip(kinds, self.steps, strict=True)
        ]

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        levels = [None if ratio is None else quantized(ratio) for ratio in self.ratios()]
        return torch.func.functional_call(self._base[0], changed(self._base[0], levels, self.steps), (x, trim))

    def bits(self, known: Sequence[np.ndarray] | None = None) -> Tensor:
        """Of all changes, smoothly.

        Args:
            known: levels of every part to which the changes are coded as differences; None: zeros.
        """
        ratios = self.ratios()
        offsets: Sequence[Tensor | float] = [0.0] * len(ratios)
        if known is not None:
            offsets = [torch.from_numpy(q).to(self.device) for q in known]
        bits = [approximate_bits(r - q) for r, q in zip(ratios, offsets, strict=True) if r is not None]
        return torch.stack(bits).sum()

    @property
    def device(self) -> torch.device:
        """Where the changes are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def levels(self) -> list[np.ndarray]:
        """q of every part."""
        found = []
        for ratio, (kind, tensor, _) in zip(self.ratios(), parts(self._base[0]), strict=True):
            q = torch.zeros(_size(kind, tensor)) if ratio is None else quantized(ratio).round().cpu()
            found.append(q.to(torch.int64).numpy())
        return found


def parts(base: nn.Module) -> Iterator[tuple[str, Tensor, float]]:
    """Class, tensor of the base and step h of everything that can change: scales, weight and bias of each layer.

    Scales are changed where the base has weights.
    """
    for layer in convolutions(base):
        spread = float(layer.weight.detach().std())
        if spread > 0:
            yield "scale", layer.weight, SCALE_STEP
        yield "weight", layer.weight, WEIGHT_STEP * spread or ZERO_STEP
        if layer.bias is not None:
            yield "bias", layer.bias, BIAS_STEP


def convolutions(net: nn.Module) -> list[nn.Conv2d]:
    """The layers, in the order in which they are coded."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]


def changed(base: nn.Module, levels: Sequence[Tensor | None], steps: Sequence[float]) -> dict[str, Tensor]:
    """Name -> tensor of the network with these levels."""
    names = {id(tensor): name for name, tensor in base.named_parameters()}
    result = {name: tensor.detach() for name, tensor in base.named_parameters()}
    for (kind, tensor, _), q, step in zip(parts(base), levels, steps, strict=True):
        if q is not None:
            name = names[id(tensor)]
            factor = 1 + step * q[:, None, None, None] if kind == "scale" else None
            result[name] = result[name] * factor if factor is not None else result[name] + step * q
    return result


def pack_delta(bases: Sequence[nn.Module], levels: Sequence[Sequence[np.ndarray]], fineness: int) -> bytes:
    """The levels of one or several networks in bytes; none if nothing changes.

    Those of the second network and later ones are coded as they are or, where that is shorter, as differences to the
    first's.
    """
    kinds = [[kind for kind, *_ in parts(base)] for base in bases]
    differences = [levels[0], *([q - first for q, first in zip(own, levels[0], strict=True)] for own in levels[1:])]
    coded = [(fineness, encode_levels(_tagged(kinds, levels)))]
    if len(bases) > 1 and max(np.abs(q).max(initial=0) for own in differences for q in own) <= MOST:
        coded.append((fineness | OVER_FIRST, encode_levels(_tagged(kinds, differences))))
    first, shortest = min(coded, key=lambda pair: len(pair[1]))
    return bytes([first]) + shortest if shortest else b""


def _tagged(kinds: Sequence[Sequence[str]], levels: Sequence[Sequence[np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """Every tensor with its class, network after network."""
    pairs = (zip(names, own, strict=True) for names, own in zip(kinds, levels, strict=True))
    return [pair for network in pairs for pair in network]


def unpack_delta(data: bytes, bases: Sequence[nn.Module]) -> None:
    """Change networks in place by what `pack_delta` made.

    Raises:
        ValueError: the bytes are damaged.
    """
    head, coded = (data[0], data[1:]) if data else (0, b"")
    fineness, over_first = head & ~OVER_FIRST, bool(head & OVER_FIRST)
    if fineness > FINEST:
        raise ValueError(f"the coded weights are damaged: a fineness of {fineness}, expected 0 to {FINEST}")
    tagged = [(kind, int(np.prod(_size(kind, tensor)))) for base in bases for kind, tensor, _ in parts(base)]
    found, first = iter(decode_levels(coded, tagged)), None
    for base in bases:
        mine = [torch.from_numpy(next(found).reshape(_size(kind, t))).float() for kind, t, _ in parts(base)]
        if first is None:
            first = mine
        elif over_first:
            mine = [q + of_first for q, of_first in zip(mine, first, strict=True)]
        steps = [step * 2.0**-fineness for _, _, step in parts(base)]
        base.load_state_dict(changed(base, mine, steps))


def _size(kind: str, tensor: Tensor) -> tuple[int, ...]:
    return (tensor.shape[0],) if kind == "scale" else tuple(tensor.shape)
