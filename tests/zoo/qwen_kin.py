"""Models made as Qwen-VL is: one sequence of patches for all pictures, squares of which make a token."""

from typing import Any

import transformers as hf

from tests.tiny_models import TEXT, finish

from .parts import EXPERTS, MIXED_LAYERS, PATCHES, ROPE, area, text, tokens

NAMES = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 14,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
    "intermediate_size": 64,
}


def qwen_tokens() -> tuple[Any, dict[str, int]]:
    tokenizer, ids = tokens(
        "<|vision_start|>", "<|vision_end|>", image_token="<|image_pad|>", video_token="<|video_pad|>"
    )
    return tokenizer, dict(zip(NAMES, ids, strict=True))


def qwen3(name: str, **language: Any) -> Any:
    """The kin of Qwen3-VL, by the names of their classes."""
    tokenizer, special = qwen_tokens()
    vision: dict[str, Any] = {**VISION, "num_position_embeddings": 256}
    if name.startswith("Qwen3VL"):
        vision |= {"depth": 3, "deepstack_visual_indexes": [0, 1]}
    rope = {**ROPE, "mrope_interleaved": True, **({} if name.startswith("Qwen3VL") else {"partial_rotary_factor": 1.0})}
    config = getattr(hf, f"{name}Config")(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope, **language}, vision_config=vision, **special
    )
    frames = {"shortest_edge": 56 * 56 * 4, "longest_edge": 28 * 28 * 64 * 8}
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=area(), **PATCHES),
        tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(size=frames, **PATCHES, do_sample_frames=False),
    )
    return finish(getattr(hf, f"{name}ForConditionalGeneration"), config, "sdpa"), processor


def qwen3_vl_moe() -> Any:
    return qwen3("Qwen3VLMoe", **EXPERTS)


def qwen3_5() -> Any:
    return qwen3("Qwen3_5", **MIXED_LAYERS)


def qwen3_5_moe() -> Any:
    return qwen3("Qwen3_5Moe", **MIXED_LAYERS, **EXPERTS)


def glm(name: str, processor: str = "Glm4v", parts: str = "", **language: Any) -> Any:
    """The kin of GLM-4V, by the names of their classes; `parts` of the processor, where they are called otherwise."""
    tokenizer, ids = tokens(
        "<|begin_of_image|>",
        "<|end_of_image|>",
        "<|begin_of_video|>",
        "<|end_of_video|>",
        image_token="<|image|>",
        video_token="<|video|>",
    )
    names = ("image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id")
    special = dict(zip((*names, "video_start_token_id", "video_end_token_id"), ids, strict=True))
    rope = {**ROPE, "partial_rotary_factor": 1.0}
    config = getattr(hf, f"{name}Config")(
        text_config={**TEXT, "rope_parameters": rope, "head_dim": 8, **language},
        vision_config={**VISION, "image_size": 112},
        **special,
    )
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64 * 2}
    images, videos = (getattr(hf, f"{parts or processor}{kind}Processor") for kind in ("Image", "Video"))
    made = getattr(hf, f"{processor}Processor")(
        image_processor=images(size=pixels, **PATCHES), tokenizer=tokenizer, video_processor=videos(**PATCHES)
    )
    return finish(getattr(hf, f"{name}ForConditionalGeneration"), config, "sdpa"), made


def glm4v() -> Any:
    return glm("Glm4v")


def exaone4_5() -> Any:
    tokenizer, special = qwen_tokens()
    vision = {**VISION, "num_key_value_heads": 2, "window_size": 56, "fullatt_block_indexes": [1]}
    config = hf.Exaone4_5_Config(
        vision_config=vision,
        text_config=text("exaone4", head_dim=8),
        image_token_id=special["image_token_id"],
        video_token_id=special["video_token_id"],
    )
    processor = hf.Exaone4_5_Processor(
        image_processor=hf.Qwen2VLImageProcessor(size=area(), **PATCHES),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(**PATCHES),
    )
    return finish(hf.Exaone4_5_ForConditionalGeneration, config, "sdpa"), processor


def video_llama_3() -> Any:
    tokenizer, ids = tokens(image_token="<image>", video_token="<video>")
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.VideoLlama3Config(
        vision_config={**vision, "patch_size": 14},
        text_config=text("qwen2"),
        image_token_id=ids[0],
        video_token_id=ids[1],
    )
    processor = hf.VideoLlama3Processor(
        image_processor=hf.VideoLlama3ImageProcessor(size=area()),
        tokenizer=tokenizer,
        video_processor=hf.VideoLlama3VideoProcessor(),
    )
    return finish(hf.VideoLlama3ForConditionalGeneration, config, "sdpa"), processor


def kimi_k25() -> Any:
    tokenizer, ids = tokens(
        "<|media_begin|>",
        "<|media_end|>",
        image_token="<|media_pad|>",
        video_token="<|kimi_k25_video_placeholder|>",
    )
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    latent = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    experts |= {"first_k_dense_replace": 1, "moe_intermediate_size": 32}
    config = hf.Kimi_K25Config(
        vision_config={**vision, "patch_size": 14, "pos_emb_height": 16, "pos_emb_width": 16},
        text_config=text("deepseek_v3", num_key_value_heads=4, **latent, **experts),
        projection_hidden_size=32,
        **dict(zip(NAMES, ids, strict=True)),
    )
    processor = hf.Kimi_K25Processor(
        image_processor=hf.Kimi_K25ImageProcessor(patch_size=14, merge_size=2),
        tokenizer=tokenizer,
        video_processor=hf.Kimi_K25VideoProcessor(),
    )
    return finish(hf.Kimi_K25ForConditionalGeneration, config, "sdpa"), processor
