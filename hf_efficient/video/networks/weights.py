"""Weights of a network while it trains (weight norm) and on disk (folded; fp32, fp16 or int8)."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from .spec import WEIGHT_DTYPES

Net = TypeVar("Net", bound=nn.Module)


def add_weight_norm(net: Net) -> Net:
    """Train direction and length of every filter separately (Salimans & Kingma, 2016). In place; outputs stay."""
    for layer in [m for m in net.modules() if isinstance(m, nn.Conv2d)]:
        weight_norm(layer)
    return net


def fold_weight_norm(net: Net) -> Net:
    """Back to plain convolutions with the same outputs, in place. Without weight norm nothing happens."""
    for layer in [m for m in net.modules() if parametrize.is_parametrized(m)]:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return net


class Int8Conv2d(nn.Module):
    """A convolution with int8 weights and one scale for each output channel. It computes in the dtype of the scale.

    Args:
        outputs: channels; the weight is (outputs, inputs, size, size).
        inputs: channels.
        size: height and width of a filter.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, outputs: int, inputs: int, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs, size, size, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        weight = self.weight.to(self.weight_scale.dtype) * self.weight_scale[:, None, None, None]
        return F.conv2d(x, weight, self.bias, padding=0 if trim else weight.shape[-1] // 2)

    @classmethod
    @torch.no_grad()
    def from_conv(cls, layer: nn.Conv2d) -> Int8Conv2d:
        """Round to nearest, symmetric: w ~ scale * q with q in [-127, 127], scale = max |w| / 127 by output channel."""
        outputs, inputs, size, _ = layer.weight.shape
        quantized = cls(outputs, inputs, size).to(layer.weight.device)
        scale = layer.weight.float().flatten(1).abs().amax(1).clamp_min(1e-12) / 127
        quantized.weight.copy_((layer.weight.float() / scale[:, None, None, None]).round().clamp(-127, 127))
        quantized.weight_scale.copy_(scale)
        if layer.bias is not None:
            quantized.bias.copy_(layer.bias)
        return quantized


def to_int8(net: Net) -> Net:
    """Replace every convolution of `net` by its int8 form. In place."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, Int8Conv2d.from_conv(child))
    return net


def as_stored(net: Net, weight_dtype: str) -> Net:
    """Make `net` equal to its weights on disk: folded, rounded to `weight_dtype`, computing in float32. In place.

    Raises:
        ValueError: `weight_dtype` is not one of WEIGHT_DTYPES.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(f"weight_dtype={weight_dtype!r} is not known; expected one of {', '.join(WEIGHT_DTYPES)}.")
    fold_weight_norm(net)
    if weight_dtype == "int8":
        to_int8(net)
    # scales and biases of int8 are stored in float16 as well
    return net if weight_dtype == "float32" else net.half().float()


def stored_bytes(net: nn.Module, weight_dtype: str) -> int:
    """Bytes of the weights of a folded network on disk, without the file's header."""
    if weight_dtype == "float32":
        return 4 * sum(p.numel() for p in net.parameters())
    if weight_dtype == "float16":
        return 2 * sum(p.numel() for p in net.parameters())
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    return sum(m.weight.numel() + 4 * m.weight.shape[0] for m in convolutions)
