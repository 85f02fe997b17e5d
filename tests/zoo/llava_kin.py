"""Models made as LLaVA is: an encoder, a projector, and placeholders for what it gives."""

from typing import Any

import transformers as hf

from tests.tiny_models import PINPOINTS, TEXT, VISION, clip_processor, finish

from .parts import PIXTRAL, SIGLIP, square, text, tokens

#: What a processor is told of an encoder as CLIP's.
CLIP: dict[str, Any] = {
    "patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
}  # fmt: skip


def pixtral_processor(tokenizer: Any, merge: int, side: int) -> Any:
    images = hf.PixtralImageProcessor(size={"longest_edge": side}, patch_size=square(14 * merge))
    return hf.PixtralProcessor(image_processor=images, tokenizer=tokenizer, patch_size=14, spatial_merge_size=merge)


def mistral3() -> Any:
    tokenizer, ids = tokens("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = hf.Mistral3Config(
        vision_config=PIXTRAL,
        text_config=text("mistral", head_dim=8),
        image_token_id=ids[0],
        image_token_index=ids[0],
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return finish(hf.Mistral3ForConditionalGeneration, config, "sdpa"), pixtral_processor(tokenizer, 2, 168)


def pixtral() -> Any:
    """LLaVA's class with an encoder and a processor of Pixtral."""
    tokenizer, ids = tokens("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = hf.LlavaConfig(
        vision_config=PIXTRAL,
        text_config=text("mistral", head_dim=8),
        image_token_id=ids[0],
        image_token_index=ids[0],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return finish(hf.LlavaForConditionalGeneration, config, "sdpa"), pixtral_processor(tokenizer, 1, 140)


def lighton_ocr() -> Any:
    tokenizer, ids = tokens(
        image_token="<|image_pad|>", image_break_token="<|vision_pad|>", image_end_token="<|vision_end|>"
    )
    config = hf.LightOnOcrConfig(
        vision_config=PIXTRAL, text_config=text("qwen3", head_dim=8), image_token_id=ids[0], spatial_merge_size=2
    )
    images = hf.PixtralImageProcessor(size={"longest_edge": 168}, patch_size=square(28))
    processor = hf.LightOnOcrProcessor(image_processor=images, tokenizer=tokenizer, patch_size=14, spatial_merge_size=2)
    return finish(hf.LightOnOcrForConditionalGeneration, config, "sdpa"), processor


def vipllava() -> Any:
    tokenizer, ids = tokens("<image>")
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=ids[0],
        image_token_index=ids[0],
        vision_feature_layers=[-1, -2],
    )
    processor = hf.LlavaProcessor(
        image_processor=clip_processor(),
        tokenizer=tokenizer,
        **CLIP,
    )
    return finish(hf.VipLlavaForConditionalGeneration, config, "sdpa"), processor


def llava_next_video() -> Any:
    tokenizer, ids = tokens("<image>", "<video>")
    config = hf.LlavaNextVideoConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=ids[0],
        video_token_id=ids[1],
        image_token_index=ids[0],
        video_token_index=ids[1],
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    size = {"size": {"shortest_edge": 56}, "crop_size": square()}
    processor = hf.LlavaNextVideoProcessor(
        image_processor=hf.LlavaNextImageProcessor(**size, image_grid_pinpoints=PINPOINTS),
        video_processor=hf.LlavaNextVideoVideoProcessor(**size),
        tokenizer=tokenizer,
        **CLIP,
    )
    return finish(hf.LlavaNextVideoForConditionalGeneration, config, "sdpa"), processor


def deepseek_vl() -> Any:
    tokenizer, ids = tokens(image_token="<image_placeholder>")
    config = hf.DeepseekVLConfig(vision_config=SIGLIP, text_config=text("llama"), image_token_id=ids[0])
    processor = hf.DeepseekVLProcessor(
        image_processor=hf.DeepseekVLImageProcessor(size=square()), tokenizer=tokenizer, num_image_tokens=16
    )
    return finish(hf.DeepseekVLForConditionalGeneration, config, "sdpa"), processor


def janus() -> Any:
    tokenizer, ids = tokens(image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>")
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    codes: dict[str, Any] = {"embed_dim": 4, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32}
    codes |= {"channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 4}
    config = hf.JanusConfig(
        vision_config={**vision, "projection_dim": 32, "mlp_ratio": 2.0, "num_image_tokens": 16},
        text_config=text("llama"),
        vq_config={**codes, "projection_dim": 32, "image_token_embed_dim": 32},
        image_token_id=ids[0],
    )
    images = hf.JanusImageProcessor(size=square(), min_size=14)
    return finish(hf.JanusForConditionalGeneration, config, "sdpa"), hf.JanusProcessor(
        images, tokenizer, num_image_tokens=16
    )
