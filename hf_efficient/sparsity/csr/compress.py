"""Compress a model for inference: linear layers as CSR matrices on a CPU, 2:4 on a GPU, where that is faster."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor

from hf_efficient.checks import check_choice, check_model
from hf_efficient.compat.torch import coded_by_torchao

from . import semi_structured
from .linear import CSRLinear
from .product import DENSEST, example, time_alternately

SAVE = "save_pretrained"


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
    """Make sparse linear layers of a plain model fast for inference, in place.

    On a CPU layers in float32 become `CSRLinear`. On a GPU (Ampere or later) the weights of layers in float16 or
    bfloat16 that are 2:4, with outputs a multiple of 32 and inputs of 64, become torch's semi-structured tensors.
    `decompress` restores the model, bit for bit but for signs of zeros.

    Args:
        model: any module; its `nn.Linear` layers are considered.
        tokens: activations of a forward, batch times length, for the timing.
        backend: "auto" replaces the layers that a timing finds faster; "csr" all on the CPU that are at least 70 %
            zero; "semi_structured" all on a GPU that are 2:4.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no model.
        ValueError: `model` is a PEFT model (merge it first), or `tokens` < 1, or `backend` is not known.
    """
    check_model(model)
    check_choice("backend", backend, ("auto", "csr", "semi_structured"))
    if tokens < 1:
        raise ValueError(f"tokens={tokens} is out of range; expected the number of activations of a forward, >= 1.")
    if hasattr(model, "merge_and_unload"):
        raise ValueError("compress takes a plain model; merge the adapter first: model = model.merge_and_unload().")
    changed = False
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or not name or coded_by_torchao(layer.weight):
            continue
        if backend != "semi_structured" and _becomes_csr(layer.weight, tokens, backend):
            model.set_submodule(name, CSRLinear(layer.weight, layer.bias).train(layer.training))
        elif backend != "csr" and _becomes_semi_structured(layer.weight, tokens, backend):
            semi_structured.make_semi_structured(layer)
        else:
            continue
        changed = True
    if changed and hasattr(model, SAVE):
        setattr(model, SAVE, refuse_saving)
    return model


def refuse_saving(*_: Any, **__: Any) -> None:
    """In place of a compressed model's `save_pretrained`, whose files `from_pretrained` would read as random weights.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "The model is compressed, and from_pretrained does not know its layers. Save it by save_sparse(model, folder), "
        "or make it plain first: decompress(model).save_pretrained(folder)."
    )


def _becomes_csr(weight: Tensor, tokens: int, backend: str) -> bool:
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    k = int(weight.count_nonzero())
    sparse = 1 <= k <= DENSEST * weight.numel()
    return sparse and (backend == "csr" or csr_infers_faster(weight.shape, k, tokens))


def _becomes_semi_structured(weight: Tensor, tokens: int, backend: str) -> bool:
    return semi_structured.suits(weight) and (backend != "auto" or semi_structured.infers_faster(weight, tokens))


def decompress(model: nn.Module) -> nn.Module:
    """Turn every layer that `compress` changed back into a plain `nn.Linear`, in place.

    Args:
        model: what `compress` returned.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no model.
    """
    check_model(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, CSRLinear):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            linear.weight = nn.Parameter(layer.matrix().to_dense().to(layer.values.dtype))
            if layer.bias is not None:
                linear.bias = nn.Parameter(layer.bias)
            model.set_submodule(name, linear.train(layer.training))
        elif isinstance(layer, nn.Linear) and isinstance(layer.weight, SparseSemiStructuredTensor):
            layer.weight = nn.Parameter(semi_structured.dense_of(layer.weight))
    if vars(model).get(SAVE) is refuse_saving:
        delattr(model, SAVE)
    return model
