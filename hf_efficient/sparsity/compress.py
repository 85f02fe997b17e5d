"""Linear layers for inference that hold their living weights only, and models made of them."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .compact import BLOCK, DENSEST, columns_of, example, multiply, time_alternately


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


class CompactLinear(nn.Module):
    """A linear layer for inference that holds its living weights only, as CSR.

    Args:
        weight: (out, in) float32, most of it zero.
        bias: (out,) or None.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        matrix = weight.detach().to_sparse_csr()
        self.register_buffer("starts", matrix.crow_indices().int())
        self.register_buffer("columns", matrix.col_indices().int())
        self.register_buffer("values", matrix.values())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def matrix(self) -> Tensor:
        """(out, in) CSR."""
        return torch.sparse_csr_tensor(
            self.starts, self.columns, self.values, (self.out_features, self.in_features), check_invariants=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out). No gradients."""
        shape = x.shape[:-1]
        with torch.no_grad():
            x = x.reshape(-1, self.in_features)
            matrix, y = self.matrix(), x.new_empty(len(x), self.out_features)
            for block, out in zip(columns_of(x), y.split(BLOCK), strict=True):
                multiply(matrix, block, out)
            if self.bias is not None:
                y += self.bias
        return y.view(*shape, self.out_features)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"{self.in_features}, {self.out_features}, alive={len(self.values)}"


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
