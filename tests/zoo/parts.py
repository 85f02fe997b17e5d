"""What the builders of the zoo share: towers, language models, tokenizers and processors, all tiny."""

from typing import Any

from tests.tiny_models import TEXT, VISION, make_tokenizer

SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 168,
    "patch_size": 14,
    "head_dim": 8,
}
PATCHES = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
MIXED_LAYERS = {  # of language models that mix linear attention with full
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
}


def text(kind: str, **settings: Any) -> dict[str, Any]:
    """The settings of a language model of this `model_type`."""
    return {**TEXT, "model_type": kind, **settings}


def square(side: int = 56) -> dict[str, int]:
    """A size as image processors take it."""
    return {"height": side, "width": side}


def area(most: int = 64) -> dict[str, int]:
    """Limits of an image's pixels: four to `most` squares of 28 x 28."""
    return {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * most}


def tokens(*special: str, **named: str) -> tuple[Any, list[int]]:
    """A tokenizer with special tokens and their ids, those first that processors ask for by `named`."""
    every = [*named.values(), *(one for one in special if one not in named.values())]
    tokenizer = make_tokenizer(every, **named)
    return tokenizer, tokenizer.convert_tokens_to_ids(every)
