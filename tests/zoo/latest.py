"""Models of sequences of patches, among them those that hear as well."""

from typing import Any

import transformers as hf

from tests.tiny_models import TEXT, finish

from .newer import FEW_EXPERTS, LATENT
from .parts import EXPERTS, PATCHES, ROPE, area, tokens
from .qwen_kin import VISION as SEQUENCE
from .qwen_kin import glm, qwen_tokens

#: sparse attention that picks what it looks at by an index
INDEXED: dict[str, Any] = {"index_topk": 16, "index_head_dim": 8, "index_n_heads": 2}


def glm5_next() -> Any:
    pick: dict[str, Any] = {"index_topk": 16, "index_head_dim": 8, "index_n_heads": 2, "index_kpool": 4, "hc_mult": 2}
    latent: dict[str, Any] = {**LATENT, "qk_rope_head_dim": 0}
    linear: dict[str, Any] = {"linear_head_dim": 8, "linear_num_heads": 4}
    linear["layer_types"] = ["linear_attention", "indexed_attention"]
    experts: dict[str, Any] = {name: value for name, value in FEW_EXPERTS.items() if name != "first_k_dense_replace"}
    layers: dict[str, Any] = {"mlp_layer_types": ["dense", "sparse"]}
    return glm("Glm5Next", "Glm5Next", num_key_value_heads=4, **pick, **latent, **linear, **experts, **layers)


def cosmos3_edge() -> Any:
    tokenizer, special = qwen_tokens()
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.Cosmos3EdgeConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": ROPE},
        vision_config={**vision, "patch_size": 14, "num_patches": 64},
        projector_hidden_size=64,
        **special,
    )
    images = hf.Cosmos3EdgeImageProcessor(size=area(), patch_size=14, merge_size=2)
    videos = hf.Cosmos3EdgeVideoProcessor(patch_size=14, merge_size=2)
    processor = hf.Cosmos3EdgeProcessor(image_processor=images, tokenizer=tokenizer, video_processor=videos)
    return finish(hf.Cosmos3EdgeForConditionalGeneration, config, "sdpa"), processor


def dots3_note() -> Any:
    tokenizer, ids = tokens("<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>")
    experts = {name: value for name, value in FEW_EXPERTS.items() if name != "first_k_dense_replace"}
    sliding = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "head_dim": 16}
    sliding |= {"qk_nope_head_dim": 8, "v_head_dim": 8}
    language = {**TEXT, "num_key_value_heads": 4, "head_dim": 16, **LATENT, **INDEXED, **experts}
    language |= {f"swa_{name}": value for name, value in sliding.items()}
    language |= {"layer_types": ["indexed_attention", "sliding_attention"], "shared_experts_intermediate_size": 32}
    vision: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4}
    vision |= {"mlp_layer_types": ["dense", "sparse"], "num_local_experts": 4, "moe_intermediate_size": 32}
    sounds = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    sounds |= {"downsample_hidden_size": 8, "adapter_input_size": 32, "adapter_out_dim": 32}
    config = hf.Dots3NoteConfig(
        text_config=language,
        vision_config={**vision, "patch_size": 14, "adapter_in_dim": 32, "adapter_out_dim": 32},
        audio_config=sounds,
        image_token_id=ids[0],
        video_token_id=ids[1],
        audio_token_id=ids[2],
    )
    images = hf.Qwen2VLImageProcessor(size=area(), patch_size=14, merge_size=2, temporal_patch_size=1)
    processor = hf.Dots3NoteProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(patch_size=14, merge_size=2, temporal_patch_size=1),
        feature_extractor=hf.Dots3NoteFeatureExtractor(),
    )
    return finish(hf.Dots3NoteForConditionalGeneration, config, "sdpa"), processor


def inkling2() -> Any:
    tokenizer, ids = tokens(image_token="<|unused_200054|>")
    heads = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "head_dim": 8, "d_rel": 4}
    experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
    layers = {"layer_types": ["hybrid_sliding", "hybrid"], "n_layers_per_attn_res_block": 1}
    language = {name: value for name, value in TEXT.items() if name != "intermediate_size"}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.Inkling2Config(
        text_config={**language, "unpadded_vocab_size": 240, **heads, **experts, **layers},
        vision_config={**vision, "posemb_grid_size": 8, "projection_hidden_dim": 64, "text_hidden_size": 32},
        image_token_id=ids[0],
    )
    processor = hf.Inkling2Processor(hf.Inkling2ImageProcessor(), tokenizer)
    return finish(hf.Inkling2ForConditionalGeneration, config, "eager"), processor


def inkling_mm_model() -> Any:
    marks = ["<|unused_200053|>", "<|content_image|>", "<|content_audio_input|>"]
    tokenizer, ids = tokens(*marks, image_token="<|unused_200054|>")
    heads = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "head_dim": 8, "d_rel": 4}
    experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    config = hf.InklingConfig(
        text_config={**TEXT, **heads, **experts, "layer_types": ["hybrid_sliding", "hybrid"]},
        vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        image_token_id=ids[0],
        audio_token_id=ids[1],
        image_bos_token_id=ids[2],
        audio_bos_token_id=ids[3],
    )
    processor = hf.InklingProcessor(hf.InklingFeatureExtractor(), hf.InklingImageProcessor(), tokenizer)
    return finish(hf.InklingForConditionalGeneration, config, "sdpa"), processor


def hunyuan_vl() -> Any:
    named = {f"image{part}_token": f"<image{part}>" for part in ("", "_start", "_end")}
    tokenizer, ids = tokens("<newline>", **named)
    vision: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4}
    vision |= {"patch_size": 14, "max_image_size": 112, "min_image_size": 28, "out_hidden_size": 32}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]}
    config = hf.HunYuanVLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=ids[0],
        im_start_id=ids[1],
        im_end_id=ids[2],
        im_newline_id=ids[3],
    )
    processor = hf.HunYuanVLProcessor(hf.HunYuanVLImageProcessor(size=area(), patch_size=14, merge_size=2), tokenizer)
    return finish(hf.HunYuanVLForConditionalGeneration, config, "sdpa"), processor


def omni(name: str, vision: dict[str, Any], sounds: dict[str, Any], rope: dict[str, Any], **language: Any) -> Any:
    """The part of Qwen's omni models that sees, hears and writes, by the names of their classes."""
    kinds = ("image", "video", "audio")
    named = {f"{kind}_token": f"<|{kind.upper()}|>" for kind in kinds}
    named |= {f"{kind}_{end}_token": f"<|{kind}_{end}|>" for kind in ("vision", "audio") for end in ("bos", "eos")}
    tokenizer, ids = tokens(**named)
    config = getattr(hf, f"{name}ThinkerConfig")(
        text_config={**TEXT, "rope_parameters": rope, **language},
        vision_config={**SEQUENCE, **vision},
        audio_config={
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            **sounds,
        },
        **{f"{kind}_token_id": one for kind, one in zip(kinds, ids, strict=False)},
        **{f"{kind}_start_token_id": one for kind, one in zip(("vision", "audio"), ids[3::2], strict=True)},
    )
    processor = getattr(hf, f"{name}Processor")(
        image_processor=hf.Qwen2VLImageProcessor(size=area(), **PATCHES),
        video_processor=hf.Qwen2VLVideoProcessor(**PATCHES),
        feature_extractor=hf.WhisperFeatureExtractor(feature_size=128),
        tokenizer=tokenizer,
    )
    return finish(getattr(hf, f"{name}ThinkerForConditionalGeneration"), config, "sdpa"), processor


def qwen2_5_omni_thinker() -> Any:
    return omni("Qwen2_5Omni", {"window_size": 56, "fullatt_block_indexes": [1]}, {"output_dim": 32}, ROPE)


def qwen3_omni_moe_thinker() -> Any:
    vision = {"num_position_embeddings": 256, "deepstack_visual_indexes": [0]}
    sounds = {"output_dim": 32, "downsample_hidden_size": 8}
    return omni("Qwen3OmniMoe", vision, sounds, {**ROPE, "mrope_interleaved": True}, head_dim=8, **EXPERTS)
