"""torch: the private names that this package uses, as read in 2.14.1. The `_foreach_` functions have no public form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# The tables stand before the imports: they are read even where one of these names is gone.
#: "module:name" -> parameters, of what is overridden.
OVERRIDDEN = {
    "torch.nn:Module._load_from_state_dict": (
        "self", "state_dict", "prefix", "local_metadata", "strict", "missing_keys", "unexpected_keys", "error_msgs",
    ),
}  # fmt: skip
#: "module:name" of what is called, read or set (built-in functions tell no parameters).
READ = (
    "torch:_foreach_add_",
    "torch:_foreach_copy_",
    "torch:_foreach_div_",
    "torch:_foreach_lerp_",
    "torch:_foreach_norm",
    "torch:Tensor._version",
    "torch:Tensor._post_accumulate_grad_hooks",
    "torch:UntypedStorage._cdata",
    "torch._C:_storage_Use_Count",
    "torch.nn:Module._replicate_for_data_parallel",
    "torch.nn.modules.batchnorm:_BatchNorm",
    "torch.nn.modules.conv:_ConvNd",
    "torch.nn.modules.module:register_module_forward_pre_hook",
    "torch.optim.optimizer:register_optimizer_step_post_hook",
    "torch.optim.optimizer:register_optimizer_step_pre_hook",
    "torch.nn:Conv1d._conv_forward",
    "torch.nn:Conv2d._conv_forward",
    "torch.nn:Conv3d._conv_forward",
    "torch.distributed.fsdp:FSDPModule.reshard",
    "torch:ops.aten._grouped_mm",
    "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu",
    "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
)
#: "module:name" -> words in its source, where a name exists on instances alone.
IN_SOURCE = {
    "torch._dynamo.eval_frame:OptimizedModule": ("_orig_mod",),
    "torch.nn:Module._replicate_for_data_parallel": ("_is_replica",),
    "torch.utils.flop_counter:FlopCounterMode.__init__": ("_get_raw",),
}

from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm  # noqa: E402
from torch.nn.modules.conv import _ConvNd as AnyConv  # noqa: E402

grouped_mm = torch.ops.aten._grouped_mm
attention_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
attention_on_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

__all__ = [
    "AnyBatchNorm",
    "AnyConv",
    "attention_on_cpu",
    "attention_on_cpu_backward",
    "change_count",
    "compiled_module",
    "convolve",
    "foreach_add_",
    "foreach_copy_",
    "foreach_div_",
    "foreach_lerp_",
    "foreach_norm",
    "grouped_mm",
    "is_replica",
    "of_tensors",
    "replicates",
    "steps_inside_backward",
    "storage_id",
    "storage_uses",
    "uncompiled_name",
]


def compiled_module(model: Any) -> Any:
    """What `torch.compile(model)` has compiled (`OptimizedModule._orig_mod`); None of any other module."""
    return model._orig_mod if "_orig_mod" in vars(model).get("_modules", ()) else None


def uncompiled_name(name: str) -> str:
    """The name of a module in a model, without what `torch.compile(part)` adds where it takes the place of a part."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def convolve(layer: AnyConv, x: Tensor, weight: Tensor) -> Tensor:
    """What a convolution does with another weight and no bias: its strides, padding and dilation."""
    result: Tensor = layer._conv_forward(x, weight, None)  # type: ignore[operator]
    return result


def is_replica(module: nn.Module) -> bool:
    """Whether a module is a copy that DataParallel made for one call."""
    return bool(getattr(module, "_is_replica", False))


def replicates(cls: type) -> bool:
    """Whether DataParallel makes copies of a class, through `_replicate_for_data_parallel`, as of every module's."""
    return hasattr(cls, "_replicate_for_data_parallel")


def change_count(tensor: Tensor) -> int:
    """How often a tensor was changed in place."""
    return int(tensor._version)


def coded_by_torchao(tensor: object) -> bool:
    """Whether it is a tensor of codes that has the dtype of numbers, and few of their operators."""
    return isinstance(tensor, Tensor) and type(tensor.data).__module__.startswith("torchao.")


def storage_id(tensor: Tensor) -> int:
    """Which storage a tensor lies in, also on "meta", where there is no address."""
    return int(tensor.untyped_storage()._cdata)


def storage_uses(tensor: Tensor) -> int:
    """How many tensors lie in a tensor's storage, itself among them: those in graphs, dicts and arrays count too."""
    return int(torch._C._storage_Use_Count(storage_id(tensor))) - _OWN_USES  # type: ignore[attr-defined]


def steps_inside_backward(parameter: Tensor) -> bool:
    """Whether anything waits for the gradient of a parameter to be accumulated, as layerwise optimizers do."""
    return bool(parameter._post_accumulate_grad_hooks)  # type: ignore[attr-defined]


foreach_add_ = torch._foreach_add_
foreach_copy_ = torch._foreach_copy_
foreach_div_ = torch._foreach_div_
foreach_lerp_ = torch._foreach_lerp_
foreach_norm = torch._foreach_norm

_OWN_USES = 0
_OWN_USES = storage_uses(torch.empty(1)) - 1  # of what `untyped_storage` itself returns, which is kept with the storage


def of_tensors(formula: Any) -> Any:
    """Mark a formula of `FlopCounterMode` as one that takes tensors, where others take their shapes."""
    formula._get_raw = True
    return formula
