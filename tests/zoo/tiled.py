"""Models that cut pictures into tiles, or whose number of tokens follows a picture's shape."""

from typing import Any

import transformers as hf

from tests.tiny_models import VISION, finish

from .parts import MIXED_LAYERS, ROPE, SIGLIP, square, text, tokens


def aya_vision() -> Any:
    places = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL"]
    tokenizer, ids = tokens("<|IMG_PATCH|>", *places, *(f"TILE_{i}" for i in range(13)))
    config = hf.AyaVisionConfig(
        vision_config=SIGLIP,
        text_config=text("cohere2", head_dim=8),
        image_token_index=ids[0],
        image_token_id=ids[0],
        downsample_factor=2,
    )
    processor = hf.AyaVisionProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=square(), crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        patch_size=14,
        img_size=56,
        downsample_factor=2,
    )
    return finish(hf.AyaVisionForConditionalGeneration, config, "sdpa"), processor


def cohere2_vision() -> Any:
    tokenizer, ids = tokens(image_token="<IMG>", boi_token="<BOI>", eoi_token="<EOI>", img_line_break_token="<BR>")
    config = hf.Cohere2VisionConfig(
        vision_config=SIGLIP,
        text_config=text("cohere2", head_dim=8),
        image_token_id=ids[0],
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    images = hf.Cohere2VisionImageProcessor(size=square(), max_patches=4, patch_size=2)
    return finish(hf.Cohere2VisionForConditionalGeneration, config, "sdpa"), hf.Cohere2VisionProcessor(
        image_processor=images, tokenizer=tokenizer
    )


def lfm2_vl() -> Any:
    places = [f"<|img_row_{i}_col_{j}|>" for i in range(1, 6) for j in range(1, 6)]
    tokenizer, ids = tokens("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *places)
    vision = {name: value for name, value in VISION.items() if name != "image_size"}
    config = hf.Lfm2VlConfig(
        vision_config={**vision, "model_type": "siglip2_vision_model", "num_patches": 64, "vision_use_head": False},
        text_config=text("lfm2", layer_types=["conv", "full_attention"], block_ff_dim=64),
        image_token_id=ids[0],
        downsample_factor=2,
        projector_hidden_size=32,
    )
    images = hf.Lfm2VlImageProcessor(
        encoder_patch_size=14, tile_size=56, min_image_tokens=4, max_image_tokens=16, max_tiles=4, min_tiles=2
    )
    return finish(hf.Lfm2VlForConditionalGeneration, config, "sdpa"), hf.Lfm2VlProcessor(
        image_processor=images, tokenizer=tokenizer
    )


def gemma4() -> Any:
    tokenizer, ids = tokens(
        "<|video|>",
        image_token="<img_soft>",
        boi_token="<boi>",
        eoi_token="<eoi>",
        audio_token="<aud>",
        boa_token="<boa>",
        eoa_token="<eoa>",
    )
    names = ("image_token_id", "boi_token_id", "eoi_token_id", "audio_token_id", "boa_token_id", "eoa_token_id")
    vision = {**VISION, "num_key_value_heads": 4, "head_dim": 8, "pooling_kernel_size": 2}
    language = text("gemma4_text", head_dim=8, vocab_size_per_layer_input=240, hidden_size_per_layer_input=0)
    language |= {"layer_types": ["sliding_attention", "full_attention"], "use_bidirectional_attention": "vision"}
    config = hf.Gemma4Config(
        text_config=language,
        vision_config={**vision, "model_type": "gemma4_vision", "position_embedding_size": 64},
        audio_config=None,
        video_token_id=ids[-1],
        **dict(zip(names, ids, strict=False)),
    )
    return gemma4_pair("Gemma4", config, tokenizer)


def gemma4_pair(name: str, config: Any, tokenizer: Any) -> Any:
    """A model of a config of Gemma 4, and the processor of its name."""
    cut = {"patch_size": 14, "pooling_kernel_size": 2}
    sounds, images, videos = (
        getattr(hf, f"{name}{part}") for part in ("AudioFeatureExtractor", "ImageProcessor", "VideoProcessor")
    )
    processor = getattr(hf, f"{name}Processor")(
        sounds(), images(**cut, max_soft_tokens=70), tokenizer, videos(**cut), image_seq_length=16
    )
    return finish(getattr(hf, f"{name}ForConditionalGeneration"), config, "sdpa"), processor


def minicpmv4_6() -> Any:
    tokenizer, ids = tokens(
        image_token="<image_pad>",
        video_token="<video_pad>",
        image_start_token="<image>",
        image_end_token="</image>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        image_id_start_token="<image_id>",
        image_id_end_token="</image_id>",
    )
    rope = {**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
    config = hf.MiniCPMV4_6Config(
        vision_config={**VISION, "num_hidden_layers": 4, "insert_layer_id": 1, "image_size": 112},
        text_config=text("qwen3_5_text", head_dim=8, rope_parameters=rope, **MIXED_LAYERS),
        insert_layer_id=1,
        image_size=112,
        image_token_id=ids[0],
        video_token_id=ids[1],
    )
    images = hf.MiniCPMV4_6ImageProcessor(scale_resolution=112, max_slice_nums=4)
    return finish(hf.MiniCPMV4_6ForConditionalGeneration, config, "sdpa"), hf.MiniCPMV4_6Processor(
        images, hf.MiniCPMV4_6VideoProcessor(), tokenizer
    )
