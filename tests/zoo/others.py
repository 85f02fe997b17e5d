"""Models made otherwise than those beside this file: with codes for features, or encoders of other libraries."""

from typing import Any

import transformers as hf

from tests.tiny_models import TEXT, VISION, finish

from .parts import square, text, tokens

#: what makes codes of pictures
CODES: dict[str, Any] = {"embed_dim": 4, "latent_channels": 4, "base_channels": 32, "num_res_blocks": 1}


def emu3() -> Any:
    named = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>"}
    named |= {"image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}
    tokenizer, ids = tokens("<|extra_200|>", **named)
    words = {f"<|visual token {i:06}|>": 20 + i for i in range(16)}
    config = hf.Emu3Config(
        vq_config={**CODES, "codebook_size": 16, "channel_multiplier": [1, 1, 1, 1], "hidden_size": 32,
                   "attn_resolutions": []},
        text_config=TEXT,
        vocabulary_map={"<image>": ids[0], "<|extra_200|>": ids[-1], **words},
    )  # fmt: skip
    images = hf.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64)
    return finish(hf.Emu3ForConditionalGeneration, config, "sdpa"), hf.Emu3Processor(images, tokenizer)


def molmo2() -> Any:
    marks = ["<im_start>", "<low_res_im_start>", "<im_end>", "<im_col>", "<frame_start>", "<frame_end>", "<im_low>"]
    tokenizer, ids = tokens("<im_patch>", *marks, image_token="<|image|>", video_token="<|video|>")
    heads = {"num_key_value_heads": 4, "head_dim": 8}
    config = hf.Molmo2Config(
        vision_config={**VISION, **heads, "image_size": [56, 56]},
        adapter_config={"hidden_size": 32, "num_attention_heads": 4, **heads, "intermediate_size": 64,
                        "text_hidden_size": 32, "vision_feature_layer": [-1, -2]},
        text_config={**TEXT, "head_dim": 8, "additional_vocab_size": 16},
        image_patch_id=ids[2],
        image_start_token_id=ids[3],
        low_res_image_start_token_id=ids[4],
        image_end_token_id=ids[5],
        frame_start_token_id=ids[7],
        frame_end_token_id=ids[8],
    )  # fmt: skip
    images = hf.Molmo2ImageProcessor(size=square(), max_crops=4, overlap_margins=[1, 1])
    processor = hf.Molmo2Processor(images, hf.Molmo2VideoProcessor(size=square()), tokenizer)
    return finish(hf.Molmo2ForConditionalGeneration, config, "sdpa"), processor


def perception_lm() -> Any:
    """With the encoder of CLIP: its own is one of timm's, which the tests do without."""
    tokenizer, ids = tokens(image_token="<|image|>", video_token="<|video|>")
    config = hf.PerceptionLMConfig(
        vision_config={**VISION, "model_type": "clip_vision_model"},
        text_config=text("llama"),
        projector_pooling_ratio=2,
        image_token_id=ids[0],
        video_token_id=ids[1],
    )
    config.vision_config.model_args = {"embed_dim": 32}
    images = hf.PerceptionLMImageProcessor(tile_size=56, max_num_tiles=1, vision_input_type="thumb+tile")
    processor = hf.PerceptionLMProcessor(hf.PerceptionLMVideoProcessor(size=square()), images, tokenizer, 14)
    return finish(hf.PerceptionLMForConditionalGeneration, config, "sdpa"), processor


def fast_vlm() -> Any:
    """With the encoder of ResNet: its own is one of timm's, which the tests do without."""
    tokenizer, ids = tokens("<image>")
    vision = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    config = hf.FastVlmConfig(
        vision_config={**vision, "model_type": "resnet", "hidden_size": 16},
        text_config=text("qwen2"),
        image_token_index=ids[0],
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square(32))
    processor = hf.LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="full"
    )
    return finish(hf.FastVlmForConditionalGeneration, config, "eager"), processor


def llama4() -> Any:
    marks = ["<|image|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>"]
    tokenizer, ids = tokens("<|patch|>", *marks)
    vision = {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    config = hf.Llama4Config(
        vision_config={**vision, "intermediate_size": 128},
        text_config={**TEXT, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2},
        image_token_index=ids[0],
    )
    images = hf.Llama4ImageProcessor(size=square(), max_patches=4)
    return finish(hf.Llama4ForConditionalGeneration, config, "sdpa"), hf.Llama4Processor(images, tokenizer)
