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


def build(
    layers: int, width: int, *, tower: tuple[int, int] = (24, 1024), side: int = 336, attention: str = "sdpa"
) -> tuple[Any, Any]:
    """A LLaVA-1.5-shaped model with random weights, and its processor with a home-made tokenizer.

    Args:
        layers: of the language model.
        width: of the language model; a head has 128, or all of it where it is narrower.
        tower: layers and width of the vision tower.
        side: of a picture; (side / 14)² visual tokens.
        attention: of tower and language model.
    """
    tokenizer = word_tokenizer(["<image>"])
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=tower[1],
        intermediate_size=4 * tower[1],
        num_hidden_layers=tower[0],
        num_attention_heads=tower[1] // 64,
        image_size=side,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=round(width * 2.6875),  # 11008 / 4096
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 128),
        num_key_value_heads=max(1, width // 128),
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=1))
    if attention != "sdpa":
        model.set_attn_implementation(attention)
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
