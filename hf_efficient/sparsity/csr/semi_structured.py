"""Linear layers with 2:4 weights on a GPU: torch's semi-structured tensors, which hold half of the entries."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

from hf_efficient.sparsity.pattern import Groups, NMPattern

from .product import time_alternately

TWO_OF_FOUR = NMPattern(2, 4)
DTYPES = (torch.float16, torch.bfloat16)  # float32 would be 1:2, in the precision of TF32
ROWS, COLUMNS = 32, 64  # of both sizes multiples are taken; cuSPARSELt asks for 16 and 16, CUTLASS for these


def suits(weight: Tensor) -> bool:
    """Whether a GPU can compute a layer's weight, (out, in), as a semi-structured one."""
    if not weight.is_cuda or weight.dtype not in DTYPES or isinstance(weight, SparseSemiStructuredTensor):
        return False
    ampere = torch.cuda.get_device_capability(weight.device) >= (8, 0)
    return ampere and torch.backends.cusparselt.is_available() and is_two_of_four(weight)


def is_two_of_four(weight: Tensor) -> bool:
    """Whether a weight, (out, in), has a size that kernels take, and at most two of every four inputs not zero."""
    rows, columns = weight.shape
    if rows % ROWS or columns % COLUMNS:
        return False
    return Groups.along(TWO_OF_FOUR, weight.shape, 1).most_in_one(weight) <= TWO_OF_FOUR.kept


def infers_faster(weight: Tensor, tokens: int) -> bool:
    """Whether a forward with B = `tokens` activations is faster; timed once for all layers of a size."""
    return _faster(weight.shape, weight.dtype, weight.device, tokens)


@functools.cache
def _faster(shape: torch.Size, dtype: torch.dtype, device: torch.device, tokens: int) -> bool:
    generator = torch.Generator().manual_seed(0)  # the program's random state is not changed
    dense = torch.randn(shape, generator=generator).to(device, dtype)
    dense.view(shape[0], -1, 4)[:, :, 2:] = 0
    x = torch.randn(tokens, shape[1], generator=generator).to(device, dtype)
    sparse = to_sparse_semi_structured(dense)

    def product(weight: Tensor) -> None:
        F.linear(x, weight)
        torch.cuda.synchronize(device)

    with torch.no_grad():
        times = time_alternately(lambda: product(sparse), lambda: product(dense))
    return times[0] < times[1]


def make_semi_structured(layer: nn.Linear) -> None:
    """Replace a layer's weight, in place; it does not train any more."""
    weight = to_sparse_semi_structured(layer.weight.detach().contiguous())
    layer.weight = nn.Parameter(weight, requires_grad=False)


def dense_of(weight: Tensor) -> Tensor:
    """A weight as a plain tensor, equal but for signs of zeros, whether semi-structured or not."""
    return weight.to_dense() if isinstance(weight, SparseSemiStructuredTensor) else weight
