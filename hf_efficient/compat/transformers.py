"""transformers: the private and undocumented names that this package calls or overrides, as read in 5.23.0."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from . import transformers_quantizers, transformers_serving

#: "module:name" -> parameters, of what is overridden. Public methods are listed too: stock code calls them.
OVERRIDDEN = {
    # Trainer: the step, and what is saved beside optimizer and scheduler (no callback can do either)
    "transformers:Trainer.training_step": ("self", "model", "inputs", "num_items_in_batch"),
    "transformers:Trainer.call_model_init": ("self", "trial"),
    "transformers:Trainer.log": ("self", "logs", "start_time"),
    "transformers:Trainer.train": ("self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "transformers:Trainer.create_model_card": ("self", "language", "license", "tags", "model_name", "finetuned_from",
                                               "tasks", "dataset_tags", "dataset", "dataset_args"),
    "transformers:Trainer._load_best_model": ("self",),
    "transformers:Trainer._load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "transformers:Trainer._save_checkpoint": ("self", "model", "trial"),
    "transformers:Trainer._save_optimizer_and_scheduler": ("self", "output_dir"),
    "transformers:Trainer._load_optimizer_and_scheduler": ("self", "checkpoint"),
    "transformers:Trainer.save_model": ("self", "output_dir", "_internal_call"),
    # processors: placeholders of a pruned image
    "transformers:ProcessorMixin.replace_image_token": ("self", "image_inputs", "image_idx", "kwargs"),
    "transformers:ProcessorMixin.replace_video_token": ("self", "video_inputs", "video_idx", "kwargs"),
    "transformers:LlavaProcessor._get_num_multimodal_tokens": ("self", "image_sizes", "kwargs"),
    # generation: images are encoded before positions are made
    "transformers:GenerationMixin._prepare_position_ids_for_generation": ("self", "inputs_tensor", "model_kwargs"),
    "transformers:GenerationMixin._maybe_prepare_encoder_kwargs_for_generation": (
        "self", "inputs_tensor", "model_kwargs", "model_input_name", "generation_config",
    ),
    "transformers:PreTrainedModel.set_attn_implementation": ("self", "attn_implementation", "allow_all_kernels"),
    "transformers:PreTrainedModel._init_weights": ("self", "module"),
    # caches: rows and columns of what they hold
    "transformers:Cache.reorder_cache": ("self", "beam_idx"),
    "transformers:Cache.batch_select_indices": ("self", "indices"),
    "transformers:Cache.batch_repeat_interleave": ("self", "repeats"),
    "transformers:Cache.crop": ("self", "tokens_to_remove"),
}  # fmt: skip
#: "module:name" -> parameters, of what is called.
CALLED = transformers_quantizers.CALLED | {
    "transformers:Trainer.compute_loss": ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    "transformers:Trainer.compute_loss_context_manager": ("self",),
    "transformers:Trainer._prepare_inputs": ("self", "inputs"),
    "transformers:Trainer._get_output_dir": ("self", "trial"),
    "transformers:Trainer._defer_fsdp_gradient_reduction": ("self",),
    "transformers:GenerationMixin._prepare_multimodal_encoder_kwargs_for_generation": ("self", "model_kwargs"),
    "transformers:ProcessorMixin._merge_kwargs": ("self", "ModelProcessorKwargs", "tokenizer_init_kwargs", "kwargs"),
    "transformers:PreTrainedModel._from_config": ("config", "kwargs"),
    "transformers:Adafactor._get_lr": ("param_group", "param_state"),
    "transformers.utils:find_adapter_config_file": ("model_id", "cache_dir", "force_download", "proxies", "token",
                                                    "revision", "local_files_only", "subfolder"),
    "transformers.vision_utils:get_vision_window_index": (
        "grid_thw", "spatial_merge_size", "window_size", "patch_size", "kwargs",
    ),
    "transformers.vision_utils:get_vision_position_ids": (
        "grid_thw", "spatial_merge_size", "include_temporal", "kwargs",
    ),
    "transformers.vision_utils:get_vision_cu_seqlens": ("grid_thw", "merge_temporal", "kwargs"),
    "transformers.vision_utils:get_vision_interpolation_indices_and_weights": (
        "grid_thw", "num_grid_per_side", "mode", "align_corners", "spatial_merge_size", "padding", "kwargs",
    ),
    "transformers.models.llava_next.modeling_llava_next:image_size_to_num_patches": (
        "image_size", "grid_pinpoints", "patch_size",
    ),
    "transformers.models.llama.modeling_llama:eager_attention_forward": (
        "module", "query", "key", "value", "attention_mask", "scaling", "dropout", "kwargs",
    ),
}  # fmt: skip
#: "module:name" of what is read or set.
READ = (
    "transformers:PreTrainedConfig._attn_implementation",
    "transformers.masking_utils:eager_mask",
    "transformers.masking_utils:sdpa_mask",
    "transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS",
    "transformers.modeling_outputs:ImageSuperResolutionOutput",
    "transformers.trainer:DEFAULT_CALLBACKS",
    "transformers:AutoModel._model_mapping",
    "transformers.models.auto.configuration_auto:CONFIG_MAPPING._extra_content",
    "transformers.models.auto.modeling_auto:MODEL_MAPPING._extra_content",
    "transformers.pytorch_utils:Conv1D",
    "transformers.video_utils:VideoMetadata",
    "transformers:GenerationMixin.generate",  # overridden, and given all arguments; so is the next
    "transformers:GenerationMixin.prepare_inputs_for_generation",
)
#: "module:name" -> words in its source, where a name exists on instances alone.
IN_SOURCE = {
    "transformers:PreTrainedConfig": ("_attn_implementation_internal",),
    "transformers:Trainer": ("is_distributed_loading_by_transformers", "DEFAULT_CALLBACKS"),
    "transformers:LlavaModel.forward": ("mm_encoder_outputs",),
    "transformers:GenerationMixin": ("mm_encoder_outputs",),
}
if transformers_serving.is_installed():
    OVERRIDDEN |= transformers_serving.OVERRIDDEN
    CALLED |= transformers_serving.CALLED
    IN_SOURCE |= transformers_serving.IN_SOURCE


def attention_name(config: Any) -> str | None:
    """The attention that a config names ("sdpa", ...; None: not chosen yet), `PreTrainedConfig._attn_implementation`.

    No public name reads it: `set_attn_implementation` only writes.
    """
    name: str | None = config._attn_implementation
    return name


def set_attention_name(config: Any, name: str | None) -> None:
    """Name the attention of this config alone: `_attn_implementation_internal`.

    `set_attn_implementation` and the property set all configs below it as well, the vision encoder's too.
    """
    config._attn_implementation_internal = name


def attention_function(name: str | None, module: Any) -> Callable[..., Any] | None:
    """The attention function that a module would call by a stock name, None where it has none.

    Registered ones stand in `modeling_utils.ALL_ATTENTION_FUNCTIONS`. "eager" is not registered: each model file has
    `eager_attention_forward` (soft caps, sinks) beside the class of its layers, under a longer name where it has two.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name not in (None, "eager"):
        registered: Callable[..., Any] | None = ALL_ATTENTION_FUNCTIONS.get(name)
        return registered
    forward = dispatching_forward(module)
    longer = () if forward is None else (n for n in forward.__code__.co_names if n.endswith("_eager_attention_forward"))
    names = (*longer, "eager_attention_forward")
    files = [sys.modules.get(cls.__module__) for cls in type(module).__mro__]
    return next((f for file in files for one in names if (f := getattr(file, one, None))), None)


def dispatching_forward(module: Any) -> Any:
    """The plain `forward` of an attention module that looks its attention function up in `ALL_ATTENTION_FUNCTIONS`.

    It does so by the name in its own `config`. None for any other module.
    """
    forward = _dispatching(type(module).forward)
    return forward if forward is not None and hasattr(module, "config") else None


@functools.cache  # by the function, which others may put in a class's place
def _dispatching(function: Any) -> Any:
    forward: Any = inspect.unwrap(function)
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    return forward if "ALL_ATTENTION_FUNCTIONS" in names else None


def stock_mask(name: str) -> Callable[..., Any]:
    """What makes the attention mask of "sdpa" or "eager": `masking_utils.sdpa_mask`, `eager_mask`."""
    from transformers import masking_utils

    mask: Callable[..., Any] = getattr(masking_utils, f"{name}_mask")
    return mask


def windows_of(grid_thw: Any, encoder: Any) -> tuple[Any, Any]:
    """The windows of Qwen2.5-VL's encoder.

    Args:
        grid_thw: (images, 3): frames, rows and columns of patches of each image.
        encoder: the stock encoder, which knows its window.

    Returns:
        The order, (merged patches,), in which the encoder has its merged patches, window by window; and where the
        windows begin and end, (windows + 1,), in patches.
    """
    from transformers.vision_utils import get_vision_window_index

    order, bounds = get_vision_window_index(
        grid_thw,
        spatial_merge_size=encoder.spatial_merge_size,
        window_size=encoder.window_size,
        patch_size=encoder.patch_size,
    )
    return order, bounds


def raster_of(grid_thw: Any, encoder: Any) -> tuple[Any, dict[str, Any]]:
    """What an encoder of the Qwen families computes from the rasters of images, before it looks at a patch.

    Args:
        grid_thw: as of `windows_of`.
        encoder: the stock encoder.

    Returns:
        Where the images or frames begin and end, (frames + 1,), in patches; and by the names of arguments by which the
        encoder takes it ready made, what belongs to each patch: positions and, of encoders with learned positions, how
        these are interpolated.
    """
    from transformers import vision_utils

    side = encoder.spatial_merge_size
    patches = {"position_ids": vision_utils.get_vision_position_ids(grid_thw, side)}
    if hasattr(encoder, "num_grid_per_side"):
        patches["interp_indices"], patches["interp_weights"] = (
            vision_utils.get_vision_interpolation_indices_and_weights(
                grid_thw,
                num_grid_per_side=encoder.num_grid_per_side,
                mode=encoder.interpolation_mode,
                align_corners=encoder.interpolation_align_corners,
                spatial_merge_size=side,
            )
        )
    return vision_utils.get_vision_cu_seqlens(grid_thw), patches


def anyres_tiles(size: Any, config: Any) -> int:
    """How many tiles LLaVA-NeXT makes of an image, the overview counted.

    Args:
        size: height and width of the image in pixels.
        config: of the model.
    """
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    return int(image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size))


def processing_settings(processor: Any, modality: str) -> dict[str, Any]:
    """What a processor gives to its part for "image" or "video" in a call without settings.

    These are defaults of the processor's class, which its `image_processor` by itself does not know.
    """
    return dict(processor._merge_kwargs().get(f"{modality}s_kwargs", {}))


def has_adapter(folder_or_id: str, **hub: Any) -> bool:
    """Whether a folder or repository holds an adapter of PEFT.

    Args:
        folder_or_id: local, or on the Hub.
        hub: `revision`, `token`, `cache_dir` and their like.
    """
    from transformers.utils import find_adapter_config_file

    return find_adapter_config_file(folder_or_id, **hub) is not None


def from_config(cls: Any) -> Any:
    """How a model class makes an untrained model of a config: `_from_config` of a plain class, `from_config` of Auto's.

    Calling the class itself would ignore the config's dtype.
    """
    return getattr(cls, "_from_config", None) or cls.from_config


def add_default_callback(callback: Any) -> None:
    """Add a callback class to every Trainer that is made from now on, in the whole process.

    `trainer.DEFAULT_CALLBACKS` has no registration; `remove_default_callback` takes it back.
    """
    from transformers import trainer

    if callback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(callback)


def remove_default_callback(name: str) -> None:
    """Undo `add_default_callback` of the class of this name; nothing happens where it was not added."""
    trainer: Any = sys.modules.get("transformers.trainer")
    if trainer is not None:
        trainer.DEFAULT_CALLBACKS[:] = [callback for callback in trainer.DEFAULT_CALLBACKS if callback.__name__ != name]


def unregister_config(model_type: str) -> None:
    """Undo `AutoConfig.register`, which has no inverse."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    CONFIG_MAPPING._extra_content.pop(model_type, None)


def unregister_model(config: type, *classes: Any) -> None:
    """Undo `AutoModel.register` for a class of configs, at each of these Auto classes; it has no inverse."""
    for cls in classes:
        cls._model_mapping._extra_content.pop(config, None)


#: The key-value cache among arguments and in outputs: "past_key_values" in 5.23, "cache" since 5.24.
CACHE_NAMES = ("cache", "past_key_values")


def cache_of(values: Any) -> Any:
    """The cache in a call's arguments or a model's output, by whichever of its names; None where there is none."""
    read = values.get if isinstance(values, Mapping) else functools.partial(getattr, values)
    return next((found for name in CACHE_NAMES if (found := read(name, None)) is not None), None)


@functools.cache
def cache_name() -> str:
    """What the installed transformers calls the argument."""
    from transformers import LlamaModel

    return next(name for name in CACHE_NAMES if name in inspect.signature(LlamaModel.forward).parameters)
