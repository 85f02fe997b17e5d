"""Compress a model for inference: linear layers as CSR matrices, where that is faster."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from .linear import CSRLinear
from .product import DENSEST, example, time_alternately


@functools.cache
def csr_infers_faster(shape: torch.Size, k: int, tokens: int) -> bool:
    """Time a forward of both forms on random numbers, once for all layers of a size.

    Args:
        shape: (out, in).
        k: active weights.
        tokens: B.
    """
    weight, x = example(shape, k, tokens)
    dense = weight.dense().detach()
    layer = CSRLinear(dense)
    times = time_alternately(lambda: layer(x), lambda: F.linear(x, dense))
    return times[0] < times[1]


def compress(model: nn.Module, *, tokens: int = 128, backend: str = "auto") -> nn.Module:
    """Replace sparse linear layers of a plain model by `CSRLinear`, for inference on the CPU, in place.

    `decompress` restores the model, bit for bit but for signs of zeros.

    Args:
        model: any module; its `nn.Linear` layers with float32 weights on the CPU are considered.
        tokens: activations of a forward, batch times length, for the timing.
        backend: "auto" replaces the layers that a timing finds faster; "csr" all that are at least 70 % zero.

    Returns:
        `model`.

    Raises:
        ValueError: `model` is a PEFT model (merge it first), or `tokens` < 1, or `backend` is not known.
    """
    if backend not in ("auto", "csr"):
        raise ValueError(f"backend={backend!r} is not known; expected 'auto' or 'csr'.")
    if tokens < 1:
        raise ValueError(f"tokens={tokens} is out of range; expected the number of activations of a forward, >= 1.")
    if hasattr(model, "merge_and_unload"):
        raise ValueError("compress takes a plain model; merge the adapter first: model = model.merge_and_unload().")
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
            continue
        k, shape = int(layer.weight.count_nonzero()), layer.weight.shape
        if not name or not 1 <= k <= DENSEST * layer.weight.numel():
            continue
        if backend == "csr" or csr_infers_faster(shape, k, tokens):
            model.set_submodule(name, CSRLinear(layer.weight, layer.bias).train(layer.training))
    return model


def decompress(model: nn.Module) -> nn.Module:
    """Turn every `CSRLinear` of a model back into `nn.Linear`, in place.

    Args:
        model: what `compress` returned.

    Returns:
        `model`.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, CSRLinear):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            linear.weight = nn.Parameter(layer.matrix().to_dense())
            if layer.bias is not None:
                linear.bias = nn.Parameter(layer.bias)
            model.set_submodule(name, linear.train(layer.training))
    return model
