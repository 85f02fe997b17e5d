"""Linear layers for inference that hold their living weights only, and models made of them."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from .linear import CompactLinear
from .product import DENSEST, example, time_alternately


@functools.cache
def compact_infers_faster(shape: torch.Size, k: int, tokens: int) -> bool:
    """Time a forward of both forms on random numbers; once for all layers of a size.

    Args:
        shape: (out, in).
        k: living weights.
        tokens: B.
    """
    weight, x = example(shape, k, tokens)
    dense = weight.dense().detach()
    layer = CompactLinear(dense)
    times = time_alternately(lambda: layer(x), lambda: F.linear(x, dense))
    return times[0] < times[1]


def compress(model: nn.Module, *, tokens: int = 128, kernel: str = "auto") -> nn.Module:
    """Replace sparse linear layers of a plain model by `CompactLinear`, for inference on the CPU, in place.

    `decompress` brings back the model as it was, bit for bit but for signs of zeros.

    Args:
        model: any module; its `nn.Linear` layers with float32 weights on the CPU are looked at.
        tokens: activations a forward has, batch times length: what is timed.
        kernel: "auto" times each layer once in both forms; "compact" replaces each layer that is at least 70 % zero.

    Returns:
        `model`.

    Raises:
        ValueError: `model` is a PEFT model (merge it first), or `tokens` < 1, or `kernel` is not known.
    """
    if kernel not in ("auto", "compact"):
        raise ValueError(f"kernel={kernel!r} is not known; expected 'auto' or 'compact'.")
    if tokens < 1:
        raise ValueError(f"tokens={tokens} is out of range; expected the activations of a forward, >= 1.")
    if hasattr(model, "merge_and_unload"):
        raise ValueError("compress takes a plain model; merge the adapter first: model = model.merge_and_unload().")
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
            continue
        k, shape = int(layer.weight.count_nonzero()), layer.weight.shape
        if not name or not 1 <= k <= DENSEST * layer.weight.numel():
            continue
        if kernel == "compact" or compact_infers_faster(shape, k, tokens):
            model.set_submodule(name, CompactLinear(layer.weight, layer.bias).train(layer.training))
    return model


def decompress(model: nn.Module) -> nn.Module:
    """Turn every `CompactLinear` back into `nn.Linear`; in place. Returns `model`."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, CompactLinear):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            linear.weight = nn.Parameter(layer.matrix().to_dense())
            if layer.bias is not None:
                linear.bias = nn.Parameter(layer.bias)
            model.set_submodule(name, linear.train(layer.training))
    return model
