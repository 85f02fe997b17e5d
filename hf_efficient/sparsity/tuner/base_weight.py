"""The weight of a layer that becomes sparse, or that a sparse delta adds to: its shape, its numbers, its layout."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from hf_efficient.compat.peft import dequantized_weight, resolve_quantization_backend
from hf_efficient.compat.torch import AnyConv
from hf_efficient.shards import whole

#: Layers whose `weight` is one matrix, or one kernel.
LAYERS = (nn.Linear, Conv1D, nn.Embedding, AnyConv)


@dataclass(frozen=True)
class BaseWeight:
    """A parameter of a layer inside all adapters.

    Args:
        module: that has it.
        parameter: its name.
    """

    module: nn.Module
    parameter: str = "weight"

    @property
    def tensor(self) -> Tensor:
        """As it is stored: of a quantized layer, its codes, or whatever it has."""
        tensor = getattr(self.module, self.parameter, None)  # of gptqmodel's layers an object that tells its shape
        if isinstance(tensor, Tensor):
            return tensor
        return next(chain(self.module.parameters(), self.module.buffers()))

    @property
    def shape(self) -> torch.Size:
        """Of its numbers."""
        layer: Any = self.module
        if is_quantized(layer) and hasattr(layer, "out_features"):
            return torch.Size((layer.out_features, layer.in_features))
        return self.tensor.shape

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return self.shape.numel()

    @property
    def stacked(self) -> bool:
        """Whether it holds one matrix per expert, (experts, rows, columns)."""
        return not isinstance(self.module, LAYERS) and self.tensor.dim() == 3

    @property
    def matrices(self) -> list[tuple[int, ...]]:
        """Shapes of its matrices; each expert's counts as a layer of its own in a budget."""
        shape = tuple(self.shape)
        return [shape[1:]] * shape[0] if self.stacked else [shape]

    @property
    def inputs_first(self) -> bool:
        """Whether a matrix has a row per input: Conv1D of GPT-2, and the experts of some models."""
        if not self.stacked:
            return isinstance(self.module, Conv1D)
        said = getattr(self.module, "is_transposed", None)
        if said is not None:
            return bool(said)
        up, down = (getattr(self.module, name, None) for name in ("gate_up_proj", "down_proj"))
        if not isinstance(up, Tensor) or not isinstance(down, Tensor):
            return False
        # Llama 4 does not say it: what goes into the first matrix comes out of the second
        return up.shape[1] == down.shape[2] and up.shape[2] != down.shape[1]

    @property
    def input_axis(self) -> int:
        """The dimension along which its inputs lie; groups of an N:M pattern are neighbours there.

        Of a convolution these are channels, as in NVIDIA's ASP (Mishra et al., 2021, arXiv 2104.08378) and in SR-STE
        (Zhou et al., ICLR 2021, arXiv 2102.04010).
        """
        return int(self.stacked) + int(not self.inputs_first)

    def numbers(self) -> Tensor:
        """Its numbers, detached; of a quantized layer, what its codes stand for. Collective where it is sharded.

        Raises:
            ValueError: nothing here reads codes of this kind.
        """
        if not is_quantized(self.module):
            return whole(self.tensor.detach())  # FSDP2 shards it between forwards
        numbers = dequantized_weight(self.module) if hasattr(self.module, "weight") else None
        if numbers is None or numbers.shape != self.shape or not numbers.is_floating_point():
            raise ValueError(
                f"The codes of a {type(self.module).__name__} cannot be read here, which the initial mask needs. Use "
                "init='gradient' or 'random', which do without the weights."
            )
        return numbers


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer stores its weight as codes, which are not numbers one by one."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, DTensor):
        return False
    if isinstance(weight, Tensor) and (not weight.is_floating_point() or type(weight.data) is not Tensor):
        return True
    return hasattr(module, "qweight") or resolve_quantization_backend(module) is not None


def has_own_forward(module: nn.Module) -> bool:
    """Whether a layer is none that multiplies its input by its weight and no more; some routers are linear layers."""
    plain = isinstance(module, Conv1D) or is_quantized(module)
    return not plain and type(module).forward is not nn.Linear.forward
