"""Kin of the models beside this file, which differ by a name or two."""

from typing import Any

import transformers as hf

from tests.tiny_models import TEXT, VISION, finish

from .llava_kin import pixtral_processor
from .parts import MIXED_LAYERS, PATCHES, PIXTRAL, ROPE, SIGLIP, area, square, text, tokens
from .qwen_kin import VISION as SEQUENCE
from .qwen_kin import glm, qwen_tokens

FEW_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
}
FEW_EXPERTS |= {"first_k_dense_replace": 1, "moe_intermediate_size": 32}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}


def patched(name: str, config: Any, processor: str, tokenizer: Any, **classes: str) -> Any:
    """A model of a config, and a processor of classes whose patches are those of Qwen2-VL."""
    images = getattr(hf, classes.get("images", f"{processor}ImageProcessor"))(size=area(), **PATCHES)
    parts = {"image_processor": images, "tokenizer": tokenizer}
    if videos := classes.get("videos"):
        parts["video_processor"] = getattr(hf, videos)(**PATCHES)
    made = getattr(hf, f"{processor}Processor")(**parts)
    return finish(getattr(hf, f"{name}ForConditionalGeneration"), config, "sdpa"), made


def hyperclovax_vision_v2() -> Any:
    tokenizer, special = qwen_tokens()
    vision = {**SEQUENCE, "model_type": "qwen2_5_vl_vision", "window_size": 56, "fullatt_block_indexes": [1]}
    config = hf.HyperCLOVAXVisionV2Config(
        vision_config=vision,
        text_config=text("granite"),
        image_token_id=special["image_token_id"],
        video_token_id=special["video_token_id"],
    )
    classes = {"images": "Qwen2VLImageProcessor", "videos": "Qwen2VLVideoProcessor"}
    return patched("HyperCLOVAXVisionV2", config, "HyperCLOVAXVisionV2", tokenizer, **classes)


def lfm3_vl() -> Any:
    tokenizer, special = qwen_tokens()
    vision = {"hidden_size": 32, "intermediate_size": 64, "in_channels": 3, **PATCHES, "num_hidden_layers": 2}
    vision.pop("merge_size")
    vision |= {"spatial_merge_size": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = hf.Lfm3VlConfig(
        vision_config={**vision, "layer_types": ["conv", "full_attention"]},
        text_config=text("lfm2", layer_types=["conv", "full_attention"], block_ff_dim=64),
        projector_hidden_size=32,
        **special,
    )
    classes = {"images": "Qwen2VLImageProcessor", "videos": "Qwen3VLVideoProcessor"}
    return patched("Lfm3Vl", config, "Lfm3Vl", tokenizer, **classes)


def glm46v() -> Any:
    return glm("Glm46V", "Glm46V", model_type="glm4v_text")


def glm4v_moe() -> Any:
    return glm("Glm4vMoe", **FEW_EXPERTS)


def glm_ocr() -> Any:
    return glm("GlmOcr", "Glm46V")


def mistral_large4() -> Any:
    tokenizer, ids = tokens("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = hf.MistralLarge4Config(
        vision_config=PIXTRAL,
        text_config={**TEXT, "num_key_value_heads": 4, **LATENT, **FEW_EXPERTS},
        image_token_index=ids[0],
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return finish(hf.MistralLarge4ForConditionalGeneration, config, "sdpa"), pixtral_processor(tokenizer, 2, 168)


def qianfan_ocr() -> Any:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer, ids = tokens("<image>", **names)
    config = hf.QianfanOCRConfig(
        vision_config={**VISION, "image_size": [56, 56], "patch_size": [7, 7]},
        text_config=text("qwen3", head_dim=8),
        image_token_id=ids[2],
        downsample_ratio=0.5,
        image_seq_length=16,
    )
    images = hf.GotOcr2ImageProcessor(size=square(), crop_to_patches=True, min_patches=1, max_patches=4)
    processor = hf.QianfanOCRProcessor(image_processor=images, tokenizer=tokenizer, image_seq_length=16)
    return finish(hf.QianfanOCRForConditionalGeneration, config, "sdpa"), processor


def minicpm(name: str, parts: str, **language: Any) -> Any:
    """The kin of MiniCPM-V 4.6, by the names of their classes."""
    names = {"image_token": "<image_pad>", "video_token": "<video_pad>"}
    for kind in ("image", "slice", "image_id"):
        names |= {f"{kind}_start_token": f"<{kind}>", f"{kind}_end_token": f"</{kind}>"}
    tokenizer, ids = tokens(**names)
    config = getattr(hf, f"{name}Config")(
        vision_config={**VISION, "num_hidden_layers": 4, "insert_layer_id": 1, "image_size": 112},
        text_config=language,
        insert_layer_id=1,
        image_token_id=ids[0],
        video_token_id=ids[1],
    )
    images = getattr(hf, f"{parts}ImageProcessor")(scale_resolution=112, max_slice_nums=4)
    made = getattr(hf, f"{name}Processor")(
        image_processor=images, video_processor=getattr(hf, f"{parts}VideoProcessor")(), tokenizer=tokenizer
    )
    return finish(getattr(hf, f"{name}ForConditionalGeneration"), config, "sdpa"), made


def minicpmv4_7() -> Any:
    rope = {**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
    return minicpm(
        "MiniCPMV4_7", "MiniCPMV4_6", **text("qwen3_5_text", head_dim=8, rope_parameters=rope, **MIXED_LAYERS)
    )


def minicpm_ocr() -> Any:
    return minicpm("MiniCPMOcr", "MiniCPMOcr", **text("qwen3", head_dim=8))


def paddleocr_vl() -> Any:
    tokenizer, special = qwen_tokens()
    config = hf.PaddleOCRVLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": ROPE},
        vision_config={**VISION, "image_size": 112, "num_hidden_layers": 2, "spatial_merge_size": 2},
        **special,
    )
    images = hf.PaddleOCRVLImageProcessor(size=area(), patch_size=14, merge_size=2, temporal_patch_size=1)
    processor = hf.PaddleOCRVLProcessor(image_processor=images, tokenizer=tokenizer)
    return finish(hf.PaddleOCRVLForConditionalGeneration, config, "sdpa"), processor


def deepseek_vl_hybrid() -> Any:
    tokenizer, ids = tokens(image_token="<image_placeholder>")
    high = {"model_type": "sam_vision_model", "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2}
    high |= {"num_attention_heads": 4, "image_size": 128, "patch_size": 16, "global_attn_indexes": [1], "mlp_dim": 64}
    config = hf.DeepseekVLHybridConfig(
        vision_config=SIGLIP, high_res_vision_config={**high, "window_size": 4}, text_config=text("llama"),
        image_token_id=ids[0],
    )  # fmt: skip
    images = hf.DeepseekVLHybridImageProcessor(size=square(), high_res_size=square(128))
    processor = hf.DeepseekVLHybridProcessor(image_processor=images, tokenizer=tokenizer, num_image_tokens=16)
    return finish(hf.DeepseekVLHybridForConditionalGeneration, config, "sdpa"), processor


def ovis2() -> Any:
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer, ids = tokens("<IMG_ATOM>", *marks, "<image>")
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.Ovis2Config(
        vision_config={
            **vision,
            "image_size": 56,
            "patch_size": 14,
            "vocab_size": 64,
            "num_visual_indicator_tokens": 5,
        },
        text_config=text("qwen2"),
        image_token_id=ids[0],
        visual_indicator_token_ids=ids[1:6],
        vocab_size=240,
        hidden_size=32,
    )
    images = hf.Ovis2ImageProcessor(size=square(), crop_to_patches=True, max_patches=4)
    processor = hf.Ovis2Processor(image_processor=images, tokenizer=tokenizer, image_seq_length=16)
    return finish(hf.Ovis2ForConditionalGeneration, config, "sdpa"), processor
