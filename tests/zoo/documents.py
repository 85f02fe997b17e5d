"""Models that read pages: an overview of a picture and cuts of it, each with tokens of its own."""

from typing import Any

import transformers as hf

from tests.tiny_models import PINPOINTS, TEXT, VISION, finish

from .newer import FEW_EXPERTS
from .parts import square, text, tokens

#: an encoder as that of SAM, which looks through windows alone: some processors know no other count than 256 tokens
SAM: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 64}
SAM |= {"output_channels": 16, "window_size": 4, "global_attn_indexes": [], "image_size": 128}


def got_ocr2() -> Any:
    tokenizer, ids = tokens("<imgpad>", "<img>", "</img>")
    config = hf.GotOcr2Config(
        vision_config={**SAM, "patch_size": 2}, text_config=text("qwen2"), image_token_index=ids[0]
    )
    processor = hf.GotOcr2Processor(hf.GotOcr2ImageProcessor(size=square(128)), tokenizer)
    return finish(hf.GotOcr2ForConditionalGeneration, config, "eager"), processor


def deepseek_ocr2() -> Any:
    tokenizer, ids = tokens(image_token="<image>")
    experts = {**FEW_EXPERTS, "n_group": 1, "mlp_layer_types": ["dense", "sparse"]}
    experts.pop("first_k_dense_replace")
    encoder = {**TEXT, "num_key_value_heads": 4}
    config = hf.DeepseekOcr2Config(
        vision_config={
            "sam_config": {**SAM, "patch_size": 2, "downsample_channels": [16, 32]},
            "encoder_config": encoder,
        },
        text_config={**TEXT, "num_key_value_heads": 4, **experts},
        image_token_id=ids[0],
    )
    images = hf.DeepseekOcr2ImageProcessor(size=square(128), tile_size=96, max_patches=2)
    processor = hf.DeepseekOcr2Processor(images, tokenizer, patch_size=2)
    return finish(hf.DeepseekOcr2ForConditionalGeneration, config, "sdpa"), processor


def unlimited_ocr() -> Any:
    tokenizer, ids = tokens(image_token="<image>")
    experts = {**FEW_EXPERTS, "n_group": 1}
    config = hf.UnlimitedOcrConfig(
        vision_config={
            "sam_config": {**SAM, "patch_size": 16, "downsample_channels": [16, 32]},
            "encoder_config": {**VISION, "image_size": 128, "patch_size": 64},
        },
        text_config={**TEXT, "num_key_value_heads": 4, **experts},
        image_token_id=ids[0],
    )
    images = hf.UnlimitedOcrImageProcessor(size=square(128), tile_size=64, max_patches=4)
    processor = hf.UnlimitedOcrProcessor(images, tokenizer)
    return finish(hf.UnlimitedOcrForConditionalGeneration, config, "sdpa"), processor


def step3p7() -> Any:
    marks = ["<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>"]
    tokenizer, ids = tokens("<im_patch>", *marks)
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "share_expert_dim": 32}
    sliding = {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}
    config = hf.Step3p7Config(
        vision_config={**VISION, "image_size": 112, "num_hidden_layers": 2, "max_position_embeddings": 64},
        text_config={**TEXT, "head_dim": 8, **experts, "mlp_layer_types": ["dense", "sparse"], **sliding},
        image_token_id=ids[0],
    )
    images = hf.Step3p7ImageProcessor(size=square(112), patch_size=56, max_image_size=224)
    return finish(hf.Step3p7ForConditionalGeneration, config, "sdpa"), hf.Step3p7Processor(images, tokenizer)


def granite_docling() -> Any:
    places = [f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5)]
    tokenizer, ids = tokens("<fake_token_around_image>", "<global-img>", *places, image_token="<image>")
    config = hf.GraniteDoclingConfig(
        vision_config={**VISION, "image_size": 64, "patch_size": 8, "out_hidden_size": 32,
                       "deepstack_visual_indexes": [0, 1]},
        text_config=TEXT,
        image_token_id=ids[0],
    )  # fmt: skip
    images = hf.GraniteDoclingImageProcessor(size=square(64), max_patches=4)
    processor = hf.GraniteDoclingProcessor(images, tokenizer, image_seq_len=4)
    return finish(hf.GraniteDoclingForConditionalGeneration, config, "sdpa"), processor


def granite4_vision() -> Any:
    tokenizer, ids = tokens(image_token="<image>")
    vision = {**VISION, "hidden_size": 64, "model_type": "siglip_vision_model", "vision_use_head": False}
    former = {"model_type": "blip_2_qformer", "intermediate_size": 64, "num_hidden_layers": 1}
    config = hf.Granite4VisionConfig(
        vision_config=vision,
        text_config=TEXT,
        qformer_config={**former, "cross_attention_frequency": 1, "use_qformer_text_input": False},
        image_token_index=ids[0],
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[1, 0], [2, 1]],
        spatial_target_layers=[0, 1, 0, 1],
    )
    size = {"size": {"shortest_edge": 56}, "crop_size": square()}
    processor = hf.Granite4VisionProcessor(
        image_processor=hf.LlavaNextImageProcessor(**size, image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
    )
    return finish(hf.Granite4VisionForConditionalGeneration, config, "sdpa"), processor
