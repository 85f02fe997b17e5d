"""PEFT: the private and undocumented names that the tuner calls or overrides, as read in PEFT 0.21.2."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hf_efficient.compat.torch import coded_by_torchao
from hf_efficient.extras import extra

# The tables stand before the imports: they are read even where one of these names is gone.
TUNERS = "peft.tuners.tuners_utils"
LORA = "peft.tuners.lora.layer"
#: "module:name" -> parameters, of what is overridden: by BiDST's tuner, but for the last.
OVERRIDDEN = {
    f"{TUNERS}:BaseTuner._check_new_adapter_config": ("self", "config"),
    f"{TUNERS}:BaseTuner._check_tied_modules": ("self", "model", "peft_config"),
    f"{TUNERS}:BaseTuner._add_modules_to_save_to_tie": ("self", "peft_config", "tied_weight_keys"),
    f"{TUNERS}:BaseTuner._create_and_replace": (
        "self", "peft_config", "adapter_name", "target", "target_name", "parent", "current_key", "parameter_name",
    ),
    f"{TUNERS}:BaseTuner._replace_module": ("self", "parent", "child_name", "new_module", "child"),
    f"{TUNERS}:BaseTuner._check_merge_allowed": ("self",),
    f"{TUNERS}:BaseTuner._get_adapter_state_dict": (
        "model", "config", "adapter_name", "state_dict", "unwanted_adapter_names",
    ),
    f"{TUNERS}:BaseTuner._remap_adapter_state_dict_for_load": ("model", "config", "adapter_name", "state_dict"),
    f"{LORA}:LoraVariant.init": ("module", "adapter_name"),
    f"{LORA}:LoraVariant.merge_safe": ("module", "active_adapter", "orig_weight"),
    f"{LORA}:LoraVariant.merge_unsafe": ("module", "active_adapter", "orig_weight"),
    f"{LORA}:LoraVariant.unmerge": ("module", "active_adapter", "orig_weight"),
    f"{LORA}:LoraVariant.forward": ("module", "active_adapter", "x", "result", "kwargs"),
    f"{LORA}:LoraVariant.supports_lora_conversion": ("self",),
    "peft:PeftConfig.from_json_file": ("path_json_file", "kwargs"),
    "peft:PeftConfig.from_pretrained": ("pretrained_model_name_or_path", "subfolder", "kwargs"),
    "peft:PeftModel._enable_peft_forward_hooks": ("self", "args", "kwargs"),  # which asks the tuner
    # wrapped where a token pruner is below the adapter
    "peft:PeftModel.save_pretrained": (
        "self", "save_directory", "safe_serialization", "selected_adapters", "save_embedding_layers",
        "is_main_process", "path_initial_model_for_weight_conversion", "kwargs",
    ),
}  # fmt: skip
#: "module:name" -> parameters, of what it calls.
CALLED = {
    f"{TUNERS}:BaseTuner._prepare_adapter_config": ("self", "peft_config", "model_config"),
    f"{TUNERS}:BaseTuner.get_model_config": ("model",),
    f"{TUNERS}:BaseTunerLayer._move_adapter_to_device_of_base_layer": ("self", "adapter_name", "device"),
    f"{TUNERS}:BaseTunerLayer._cast_input_dtype": ("self", "x", "dtype"),
    f"{TUNERS}:_maybe_include_all_linear_layers": ("peft_config", "model"),
    f"{TUNERS}:check_target_module_exists": ("config", "key"),
    f"{TUNERS}:check_adapters_to_merge": ("module", "adapter_names"),
    "peft.utils:resolve_quantization_backend": ("base_layer", "kwargs"),
    "peft.utils.merge_utils:prune": ("tensor", "density", "method", "rescale"),
    "peft.utils.merge_utils:calculate_majority_sign_mask": ("tensor", "method"),
    "peft.utils.merge_utils:disjoint_merge": ("task_tensors", "majority_sign_mask"),
    "peft.utils:load_peft_weights": ("model_id", "device", "key_mapping", "hf_hub_download_kwargs"),
    "peft.utils.integrations:dequantize_bnb_weight": ("weight", "state"),
    "peft.utils.integrations:get_bnb_param_type": ("param",),
    f"{LORA}:Linear.get_delta_weight": ("self", "adapter"),
    "peft.utils:register_peft_method": ("name", "config_cls", "model_cls", "prefix", "is_mixed_compatible"),
}
#: "module:name" of what is read or set.
READ = (
    f"{TUNERS}:_ExcludedModule",
    f"{TUNERS}:BaseTunerLayer._active_adapter",
    f"{TUNERS}:BaseTunerLayer._disable_adapters",
    f"{TUNERS}:BaseTunerLayer.adapter_layer_names",
    f"{TUNERS}:BaseTunerLayer.other_param_names",
    "peft.utils:PeftType._member_map_",
    "peft.utils:PeftType._value2member_map_",
    "peft.utils:PeftType._member_names_",
    "peft:PeftMixedModel",
    "peft.tuners.tuners_utils:BaseTuner",
    "peft.tuners.tuners_utils:BaseTunerLayer",
    f"{LORA}:Conv1d",
    f"{LORA}:Conv2d",
    f"{LORA}:Conv3d",
    f"{LORA}:LoraLayer",
    f"{LORA}:LoraVariant",
    f"{LORA}:ParamWrapper",
    "peft.utils:CONFIG_NAME",
    "peft.utils:ModulesToSaveWrapper",
    "peft.utils:TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
)
#: "module:name" -> words in its source: how a layer asks its variant.
IN_SOURCE = {
    f"{LORA}:Linear.forward": ("not in self.lora_variant", "self.lora_variant[active_adapter].forward("),
    f"{LORA}:Linear.merge": ("not in self.lora_variant", ".merge_safe(", ".merge_unsafe("),
    f"{LORA}:LoraLayer.update_layer": ("self.lora_variant[adapter_name] = ", "adapter_name in self.lora_variant"),
    f"{LORA}:LoraLayer.__init__": ("self.merged_adapters", "self.scaling", "self.lora_dropout"),
    "peft.tuners.lora.bnb:dispatch_bnb_4bit": ("Linear4bit(",),
}

with extra("sparsity"):
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import (
        _ExcludedModule,
        _maybe_include_all_linear_layers,
        check_adapters_to_merge,
        check_target_module_exists,
    )
    from peft.utils import PeftType, resolve_quantization_backend
    from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "CALLED",
    "IN_SOURCE",
    "OVERRIDDEN",
    "READ",
    "ParamWrapper",
    "add_all_linear",
    "add_peft_method",
    "check_adapters_to_merge",
    "dequantized_weight",
    "is_target",
    "maskable_lora_layers",
    "peft_type",
    "remove_peft_method",
    "resolve_quantization_backend",
]


def peft_type(name: str) -> PeftType:
    """A member of `PeftType`, added if it is absent: the enumeration is closed, and registration needs a member."""
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        PeftType._member_names_.append(name)
        if not hasattr(PeftType, name):
            type.__setattr__(PeftType, name, member)  # Python >= 3.12 looks members up as attributes
    return PeftType(name)


def add_peft_method(name: str, config: type[PeftConfig], model: type) -> None:
    """Let PEFT load and make a method: `register_peft_method`, if PEFT does not know it yet.

    Args:
        name: in lower case; its parameters begin with "<name>_".
        config: its class of configs.
        model: its tuner.
    """
    from peft import mapping
    from peft.utils import register_peft_method

    if peft_type(name.upper()) not in mapping.PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config, model_cls=model)


def remove_peft_method(name: str) -> None:
    """Undo `peft_type` and `add_peft_method`: PEFT, which has no inverse of its registration, forgets the method.

    Its tables are then those of a process that never knew it. Models made before go on working.
    """
    from peft import mapping

    member = name.upper()
    tables: tuple[Any, ...] = (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, mapping.PEFT_TYPE_TO_TUNER_MAPPING,
                               mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PeftType._member_map_,
                               PeftType._value2member_map_)  # fmt: skip
    for table in tables:
        table.pop(member, None)
    if member in PeftType._member_names_:
        PeftType._member_names_.remove(member)
    if member in vars(PeftType):
        type.__delattr__(PeftType, member)


def is_target(config: PeftConfig, key: str) -> bool:
    """Whether PEFT targets the module of this name: named by `target_modules` and not excluded."""
    found = check_target_module_exists(config, key) if key else None
    return bool(found) and not isinstance(found, _ExcludedModule)


def add_all_linear(config: PeftConfig, model: nn.Module) -> list[str]:
    """Replace target_modules="all-linear" in `config` by the names of these layers, and return the names."""
    _maybe_include_all_linear_layers(config, model)
    return list(getattr(config, "target_modules", None) or ())


def dequantized_weight(module: Any) -> Tensor:
    """The weight of a layer as numbers, detached; of a quantized one, what its codes stand for."""
    weight: Any = module.weight
    state: Any = getattr(weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):  # after a forward in eval mode on CPUs that have AVX512-BF16
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse, dequantize_4bit

        weight = dequantize_4bit(*_convert_weight_packed_for_cpu_inverse(weight.data, copy.copy(state)))
    elif get_bnb_param_type(weight):
        weight = dequantize_bnb_weight(weight, state=getattr(module, "state", None))
    elif not isinstance(weight, Tensor) and hasattr(module, "dequantize_weight"):  # gptqmodel's
        weight = module.dequantize_weight().T
    elif coded_by_torchao(weight):
        weight = weight.dequantize()
    result: Tensor = weight.detach()
    return result


def maskable_lora_layers() -> tuple[type, ...]:
    """LoRA's layers that ask a variant in forward and merge alike, and whose base weight can be read."""
    from peft.tuners import lora

    layers: list[type] = [lora.layer.Linear, lora.layer.Conv1d, lora.layer.Conv2d, lora.layer.Conv3d]
    bits = sys.modules.get("peft.tuners.lora.bnb")  # imported where a model has such layers
    return (*layers, *(getattr(bits, name) for name in ("Linear8bitLt", "Linear4bit") if hasattr(bits, name)))
