"""Fewer bits a weight, on load: which library does it, and what a file is then."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from transformers.pytorch_utils import Conv1D

from hf_efficient.budget.plan.precision import precision_of, quantization_config
from hf_efficient.compat.transformers_quantizers import quantized_on_load


@dataclass(frozen=True)
class Bits:
    """One way to store weights in fewer bits.

    Args:
        library: that does it.
        settings: makes its quantization config, or the dict of one.
        entry: bytes of an entry.
        beside: of the bytes of an entry in full -> bytes that are stored beside a group of entries: its scale.
        group: entries of a group; 0: those of an output.
        layer: bytes beside each layer.
    """

    library: str
    settings: Callable[[], Any]
    entry: float
    beside: Callable[[int], int]
    group: int = 0
    layer: int = 0

    def precision(self) -> dict[str, Any]:
        """The part of a plan that says so."""
        return precision_of(self.settings())

    def bytes_of(self, weight: Any, outputs: int) -> float:
        """Of a layer in a file, its bias left out."""
        groups = math.ceil(weight.numel() / self.group) if self.group else outputs
        return float(weight.numel() * self.entry + groups * self.beside(weight.element_size()) + self.layer)


def _torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


_NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
#: Lever -> the ways to pull it; the first whose library is installed is taken. bitsandbytes has a float32 scale for
#: each output or each 64 entries, and of 4 bits a table and a description for each layer; torchao, whose 4 bits need
#: kernels that run on few GPUs, a scale of the weight's type and a zero point of a byte for each output.
BITS: dict[str, tuple[Bits, ...]] = {
    "int8": (
        Bits("bitsandbytes", lambda: {"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0, lambda size: 4),
        Bits("torchao", _torchao_int8, 1.0, lambda size: size + 1),
    ),
    "int4": (Bits("bitsandbytes", lambda: _NF4, 0.5, lambda size: 4, group=64, layer=150),),
}


def kind_of_bits(name: str) -> Bits | None:
    """The way to pull a lever with what is installed, None where there is none."""
    return next((kind for kind in BITS[name] if find_spec(kind.library) is not None), None)


def quantized_weights(model: Any, kind: Bits) -> set[str]:
    """Names of the weights that the library takes."""
    return quantized_on_load(model, quantization_config(kind.precision()))


def saved_by(model: Any, kind: Bits) -> float:
    """Bytes by which a file is smaller with fewer bits: weights that the library takes count, others stay."""
    saved = 0.0
    for name in quantized_weights(model, kind):
        layer = model.get_submodule(name.rpartition(".")[0])
        outputs = layer.weight.shape[1 if isinstance(layer, Conv1D) else 0]
        saved += layer.weight.numel() * layer.weight.element_size() - kind.bytes_of(layer.weight, outputs)
    return saved
