"""vLLM: the private and moving names that the plug-in calls or overrides, as read in 0.32.0.

vLLM promises its group of entry points and `ModelRegistry.register_model`; what lies behind may change with any
release. Nothing is imported before it is asked for: the package is installed in many places without vLLM.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from .names import installed_version

#: Releases with which `make test-serving` has passed, by their first two numbers.
TESTED = ("0.32",)
#: "module:name" -> parameters, of what is overridden.
OVERRIDDEN = {
    "vllm.multimodal.processing:BaseMultiModalProcessor._get_prompt_updates": (
        "self", "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs",
    ),
    "vllm.multimodal.processing:BaseMultiModalProcessor._get_mm_hashes": ("self", "inputs"),
    "vllm.multimodal.processing:BaseMultiModalProcessor._apply_hf_processor_main": ("self", "mm_items", "hf_kwargs"),
    "vllm.multimodal.processing:BaseMultiModalProcessor._get_mm_fields_config": (
        "self", "hf_inputs", "hf_processor_mm_kwargs",
    ),
    "vllm.multimodal.processing:BaseProcessingInfo.validate_num_items": ("self", "modality", "num_items"),
    "vllm.multimodal.processing:BaseProcessingInfo.get_mm_max_tokens_per_item": ("self", "seq_len", "mm_counts"),
    "vllm.model_executor.models.interfaces:SupportsMultiModal.embed_multimodal": ("self", "kwargs"),
    "vllm.model_executor.models.interfaces:SupportsMultiModal.embed_input_ids": (
        "self", "input_ids", "multimodal_embeddings", "is_multimodal",
    ),
    "vllm.model_executor.models.interfaces:SupportsMRoPE.get_mrope_input_positions": (
        "self", "input_tokens", "mm_features",
    ),
    "vllm.model_executor.layers.attention:Attention.forward": (
        "self", "query", "key", "value", "output_shape", "output_dtype",
    ),
}  # fmt: skip
#: "module:name" -> parameters, of what is called.
CALLED = {
    "vllm.multimodal.registry:MultiModalRegistry.create_processor": ("self", "model_config", "tokenizer"),
    "vllm.multimodal.processing.processor:PromptUpdate.resolve": ("self", "item_idx"),
    "vllm.model_executor.models.llava_next:LlavaNextForConditionalGeneration._merge_image_patch_embeddings": (
        "self", "image_size", "patch_embeddings", "strategy",
    ),
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionForConditionalGeneration._merge_image_patch_embeddings": (
        "self", "image_size", "patch_embeddings", "image_newline", "vision_aspect_ratio", "strategy",
    ),
}  # fmt: skip
#: "module:name" of what is read.
READ = (
    "vllm.multimodal:MULTIMODAL_REGISTRY",
    "vllm.multimodal.registry:_ProcessorFactories",
    "vllm.multimodal.inputs:MultiModalFieldConfig.batched",
    "vllm.multimodal.parse:EmbeddingItems",
    "vllm.config:MultiModalConfig.mm_device_do_normalize",
    "vllm.multimodal.processing:PromptReplacement",
    "vllm.multimodal.processing:PromptInsertion",
    "vllm.multimodal.processing:PromptUpdateDetails",
    "vllm.model_executor.layers.attention:MMEncoderAttention",
    "vllm.model_executor.models.interfaces:SupportsMultiModal",
    "vllm.distributed:get_tensor_model_parallel_world_size",
    "vllm.distributed:tensor_model_parallel_all_reduce",
    "vllm.v1.attention.backend:AttentionBackend.supports_head_size",
    "vllm.v1.attention.backend:AttentionBackend.get_name",
)
#: "module:name" -> words in its source, where a name exists on instances alone.
IN_SOURCE = {
    "vllm.multimodal.registry:MultiModalRegistry.register_processor": ("_processor_factory",),
    "vllm.model_executor.layers.attention:MMEncoderAttention": ("self.head_size", "self.scale"),
    "vllm.model_executor.layers.attention:Attention": (
        "self.attn_backend",
        "self.layer_name",
        "self.sliding_window",
        "self.has_sink",
        "self.kv_cache_torch_dtype",
        "compilation_config.static_forward_context[prefix] = self",
        "attn_backend: ",
    ),
}


def untested() -> str | None:
    """What to tell of a release that was not tested with the plug-in, None of one that was."""
    found = installed_version("vllm")
    if found is None or ".".join(found.split(".")[:2]) in TESTED:
        return None
    return (
        f"vLLM {found} was not tested with hf_efficient's plug-in, which is tested with {', '.join(TESTED)}: compare a "
        "few answers with those of transformers first (docs/vllm.md)."
    )


def stock_class(module: str, name: str) -> Any:
    """A model class of vLLM: `vllm.model_executor.models.<module>.<name>`."""
    return getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name)


def register_processor(cls: Any, stock: Any, mixin_processor: type, mixin_info: type) -> None:
    """Give a model class the stock class's processor and processing info, each with a mixin before its own class.

    Where the stock class builds one of several, as LLaVA and Pixtral share theirs, the mixins go before what it built.
    """
    from vllm.multimodal import MULTIMODAL_REGISTRY

    factories = stock._processor_factory

    def info(ctx: Any) -> Any:
        return mixed(factories.info(ctx), mixin_info)

    def processor(info: Any, dummy_inputs: Any) -> Any:
        return mixed(factories.processor(info, dummy_inputs), mixin_processor)

    MULTIMODAL_REGISTRY.register_processor(processor, info=info, dummy_inputs=factories.dummy_inputs)(cls)


_MIXED: dict[tuple[type, type], type] = {}


def mixed(thing: Any, mixin: type) -> Any:
    """The thing as an object of a subclass of the same name that has the mixin first, in place of one just made."""
    key = (type(thing), mixin)
    if key not in _MIXED:
        _MIXED[key] = type(type(thing).__name__, (mixin, type(thing)), {"__module__": type(thing).__module__})
    made: Any = object.__new__(_MIXED[key])  # assigning __class__ fails for some, whose layout differs
    vars(made).update(vars(thing))
    return made


def check_processors(check: Callable[[Any], None]) -> None:
    """Call `check` with vLLM's `ModelConfig` before any processor is made, so of every model with pictures.

    `MULTIMODAL_REGISTRY.create_processor` is asked by all: by the server, by the engine and by profiling.
    """
    from vllm.multimodal import MULTIMODAL_REGISTRY

    stock = type(MULTIMODAL_REGISTRY).create_processor

    def create_processor(model_config: Any, **kwargs: Any) -> Any:
        check(model_config)
        return stock(MULTIMODAL_REGISTRY, model_config, **kwargs)

    MULTIMODAL_REGISTRY.create_processor = create_processor


def model_class(model_config: Any) -> Any:
    """The class that vLLM serves a model with."""
    from vllm.model_executor.model_loader import get_model_architecture

    return get_model_architecture(model_config)[0]


def mean_over_ranks(values: Any) -> Any:
    """The mean of a tensor over the ranks of tensor parallelism."""
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

    ranks = get_tensor_model_parallel_world_size()
    return values if ranks == 1 else tensor_model_parallel_all_reduce(values) / ranks


def encoder_attention() -> Any:
    """The class of the attention modules of vision encoders, which are given queries and keys, split and rotated."""
    from vllm.model_executor.layers.attention import MMEncoderAttention

    return MMEncoderAttention


def attention_layers(model: Any) -> list[tuple[Any, str, Any]]:
    """Attention layers with a cache: the module that each is in, its name there, and itself."""
    from vllm.model_executor.layers.attention import Attention

    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, Attention)
    ]


_WIDER: dict[tuple[type, type], type] = {}


def wider_layer(layer: Any, width: int, mixin: type, vllm_config: Any) -> Any:
    """A layer like an attention layer, with heads of another width and a mixin before its class, in its place.

    Args:
        layer: vLLM's `Attention`, just built.
        width: of the heads of its cache and of what it is given.
        mixin: a class.
        vllm_config: all settings of the engine.

    Raises:
        ValueError: the layer does more than add up values by the softmax of products.
    """
    stock, impl = type(layer), layer.impl
    more = {
        "ALiBi": getattr(impl, "alibi_slopes", None) is not None,
        "a soft cap": bool(getattr(impl, "logits_soft_cap", None)),
        "sinks": layer.has_sink,
        "a cache shared by layers": layer.kv_sharing_target_layer_name is not None,
        f"the class {stock.__name__}": stock.__module__.split(".")[0] != "vllm" or stock.__name__ != "Attention",
    }
    if any(more.values()):
        raise ValueError(
            f"Sizes of tokens (proportional attention) cannot be counted by attention with "
            f"{' and '.join(name for name, there in more.items() if there)}. Set proportional_attention=False."
        )
    if (stock, mixin) not in _WIDER:
        _WIDER[stock, mixin] = type(stock.__name__, (mixin, stock), {"__module__": stock.__module__})
    del vllm_config.compilation_config.static_forward_context[layer.layer_name]  # its name is that of the new one
    return _WIDER[stock, mixin](
        layer.num_heads, width, impl.scale, num_kv_heads=layer.num_kv_heads, cache_config=vllm_config.cache_config,
        quant_config=layer.quant_config, per_layer_sliding_window=layer.sliding_window, prefix=layer.layer_name,
        attn_type=layer.attn_type, attn_backend=layer.attn_backend,
    )  # fmt: skip


def longest_step(vllm_config: Any) -> int:
    """The most tokens that a model is run on at once, those counted that fill up a captured graph."""
    captured: int = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    return max(vllm_config.scheduler_config.max_num_batched_tokens, captured)


def merged_tiles(cls: Any, model: Any, size: Any, tiles: Any) -> Any:
    """Features (tiles, n, D) of a picture as a class of LLaVA-NeXT or LLaVA-OneVision merges them: (N, D).

    Args:
        cls: of vLLM.
        model: with the `config` and `image_newline` that it reads.
        size: height and width of the picture in pixels, a tensor.
        tiles: the features.
    """
    options = {"strategy": "spatial_unpad"}
    if "image_newline" in inspect.signature(cls._merge_image_patch_embeddings).parameters:
        options["image_newline"] = model.image_newline
    return cls._merge_image_patch_embeddings(model, size, tiles, **options)


def with_content(update: Any, content: Callable[[int], Any]) -> Any:
    """A prompt update of vLLM that writes other content."""
    from vllm.multimodal.processing import PromptInsertion

    name = "insertion" if isinstance(update, PromptInsertion) else "replacement"
    return dataclasses.replace(update, **{name: content})


def details(ids: list[int], places: list[bool] | None) -> Any:
    """vLLM's `PromptUpdateDetails`: token ids that are written, and which of them get embeddings (None: all)."""
    import torch
    from vllm.multimodal.processing import PromptUpdateDetails

    if places is None:
        return PromptUpdateDetails.from_seq(ids)
    mask = torch.tensor(places)
    return PromptUpdateDetails(full=ids, is_embed=lambda full: mask)


def batched(modality: str) -> Any:
    """vLLM's `MultiModalFieldConfig` of an argument that has a row for every picture or video."""
    from vllm.multimodal.inputs import MultiModalFieldConfig

    return MultiModalFieldConfig.batched(modality)


def are_embeddings(items: Any) -> bool:
    """Whether a request brings features of its pictures in place of the pictures."""
    from vllm.multimodal.parse import EmbeddingItems

    return isinstance(items, EmbeddingItems)
