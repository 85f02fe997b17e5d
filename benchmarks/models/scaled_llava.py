"""A LLaVA-1.5-shaped model with random weights: the shape of its vision tower, a language model that fits here."""

import gc
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from benchmarks.harness.memory import resident
from benchmarks.models.words import word_tokenizer
from hf_efficient.compat.transformers import cache_of


def build(layers: int, width: int) -> tuple[Any, Any]:
    """A LLaVA-1.5-shaped model with random weights, and its processor with a home-made tokenizer."""
    tokenizer = word_tokenizer(["<image>"])
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=round(width * 2.6875),  # 11008 / 4096
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=1))
    return model.eval(), processor


def prefill(model: Any, inputs: Any, features: Any) -> Any:
    """The language model on a prompt whose images are encoded already."""
    return model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        mm_encoder_outputs={"image": features},
        use_cache=True,
        logits_to_keep=1,
    )


def prefill_memory(model: Any, inputs: Any, features: Any) -> dict[str, int | None]:
    """KV-cache bytes after a prefill, and how far resident memory rose in it (None where Linux's /proc is absent)."""
    prefill(model, inputs, features)
    gc.collect()
    before = resident(reset_peak=True)
    out = prefill(model, inputs, features)
    after = resident()
    layers = cache_of(out).layers
    held = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
    return {"kv_bytes": held, "peak_bytes": None if before is None or after is None else after[1] - before[0]}
