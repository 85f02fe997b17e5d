"""transformers' quantizers: which weights they change when a model is loaded, as read in 5.23.0."""

from __future__ import annotations

import copy
from typing import Any

#: "module:name" -> parameters, of what is called.
CALLED = {
    "transformers.quantizers:AutoHfQuantizer.from_config": ("quantization_config", "kwargs"),
    "transformers.quantizers:HfQuantizer.preprocess_model": ("self", "model", "dtype", "kwargs"),
    "transformers.quantizers:HfQuantizer.param_needs_quantization": ("self", "model", "param_name", "kwargs"),
}


def quantized_on_load(model: Any, config: Any) -> set[str]:
    """Names of the weights that `from_pretrained(quantization_config=config)` would quantize.

    Heads, tied weights, the last module and those that a model keeps in float32 stay as they are; only the quantizer
    knows them all, so it is asked, on a copy of the model without values.

    Args:
        model: of transformers; it is not changed.
        config: a quantization config, whose library is installed.
    """
    from transformers.quantizers import AutoHfQuantizer

    skeleton, quantizer = without_values(model), AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(skeleton, device_map=None)
    return {name for name, _ in skeleton.named_parameters() if quantizer.param_needs_quantization(skeleton, name)}


def without_values(model: Any) -> Any:
    """A copy on the device "meta": its weights take no memory, and those that are shared still are."""
    import torch

    tensors = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    weights = {
        id(weight): torch.nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, {**tensors, **weights})
