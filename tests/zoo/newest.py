"""Models whose processors name their tokens themselves, and mixtures of parts."""

from collections.abc import Sequence
from typing import Any

import transformers as hf

from tests.tiny_models import TEXT, VISION, finish

from .newer import patched
from .parts import EXPERTS, MIXED_LAYERS, ROPE, SIGLIP, area, square, tokens
from .qwen_kin import NAMES, glm, qwen_tokens
from .qwen_kin import VISION as SEQUENCE
from .tiled import gemma4_pair

QWEN = {"images": "Qwen2VLImageProcessor", "videos": "Qwen3VLVideoProcessor"}
MIXED_ROPE = {**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}


def cohere_compass() -> Any:
    tokenizer, ids = tokens("<|IMAGE_PAD|>", "<|VIDEO_PAD|>", "<|VISION_START|>", "<|VISION_END|>")
    rope = {**ROPE, "mrope_interleaved": True}
    config = hf.CohereCompassConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": {"full_attention": rope, "sliding_attention": rope}},
        vision_config={**SEQUENCE, "num_position_embeddings": 256, "deepstack_visual_indexes": [0]},
        **dict(zip(NAMES, ids, strict=True)),
    )
    return patched("CohereCompass", config, "CohereCompass", tokenizer, videos="CohereCompassVideoProcessor")


def qwen4_exp() -> Any:
    tokenizer, special = qwen_tokens()
    index = {"indexer_budget": 16, "indexer_compress_ratio": 4, "indexer_n_heads": 2}
    index |= {"indexer_kv_heads": 1, "indexer_head_dim": 8}
    config = hf.Qwen4ExpConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": MIXED_ROPE, **MIXED_LAYERS, **EXPERTS, **index},
        vision_config={**SEQUENCE, "num_position_embeddings": 256},
        **special,
    )
    return patched("Qwen4Exp", config, "Qwen3VL", tokenizer, **QWEN)


def cosmos3_omni() -> Any:
    tokenizer, special = qwen_tokens()
    rope = {**ROPE, "mrope_interleaved": True}
    vision = {**SEQUENCE, "num_position_embeddings": 256, "deepstack_visual_indexes": [0]}
    config = hf.Cosmos3OmniConfig(
        text_config={**TEXT, "model_type": "qwen3_vl_text", "head_dim": 8, "rope_parameters": rope},
        vision_config={**vision, "model_type": "qwen3_vl_vision"},
        **special,
    )
    return patched("Cosmos3Omni", config, "Qwen3VL", tokenizer, **QWEN)


def muse(name: str, settings: dict[str, Any], sounds: Sequence[str] = (), **parts: Any) -> Any:
    """A pair of the Muse models: what belongs to one, special tokens for sounds, and further parts of its processor."""
    marks = ["<|image_start|>", "<|image_end|>", "<|vid_frame_separator|>", "<|vid_start|>", "<|vid_end|>"]
    tokenizer, ids = tokens("<|patch|>", "<|video|>", *marks, *sounds)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(hf, f"{name}Config")(
        vision_config={**vision, "patch_size": 14, "pos_emb_height": 16, "pos_emb_width": 16},
        image_token_id=ids[0],
        video_token_id=ids[1],
        projector_hidden_size=32,
        out_hidden_size=128,
        **settings,
    )
    processor = getattr(hf, f"{name}Processor")(
        image_processor=hf.MuseGlimmerImageProcessor(patch_size=14, merge_size=2),
        video_processor=hf.MuseGlimmerVideoProcessor(),
        tokenizer=tokenizer,
        **parts,
    )
    return finish(getattr(hf, f"{name}ForConditionalGeneration"), config, "sdpa"), processor


def muse_glimmer() -> Any:
    return muse("MuseGlimmer", {"text_config": {**TEXT, "head_dim": 8}})


def aria() -> Any:
    tokenizer, ids = tokens(image_token="<image>")
    vision = {**SIGLIP, "model_type": "idefics3_vision", "image_size": 980, "patch_size": 140}
    vision.pop("vision_use_head")
    experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    config = hf.AriaConfig(
        vision_config=vision,
        text_config={**TEXT, **experts},
        vision_feature_layer=-1,
        projector_patch_to_query_dict={49: 8},
        image_token_index=ids[0],
    )
    images = hf.AriaImageProcessor()
    processor = hf.AriaProcessor(image_processor=images, tokenizer=tokenizer, size_conversion={490: 8, 980: 8})
    return finish(hf.AriaForConditionalGeneration, config, "sdpa"), processor


def minimax_m3_vl() -> Any:
    names = [
        getattr(hf.MiniMaxM3VLProcessor, f"{name}_TOKEN") for name in ("IMAGE", "VIDEO", "VISION_START", "VISION_END")
    ]
    tokenizer, ids = tokens(*names)
    index = {"index_n_heads": 2, "index_head_dim": 8, "index_block_size": 16}
    experts = {"num_experts_per_tok": 2, "num_local_experts": 4, "dense_intermediate_size": 64}
    config = hf.MiniMaxM3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rotary_dim": 8, "shared_intermediate_size": 64, **experts, **index},
        vision_config={**VISION, "num_hidden_layers": 2, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_index=ids[0],
        video_token_index=ids[1],
        projector_hidden_size=32,
    )
    return patched("MiniMaxM3Sparse", config, "MiniMaxM3VL", tokenizer, videos="MiniMaxM3VLVideoProcessor")


def ernie4_5_vl_moe() -> Any:
    names = {f"{kind}{part}_token": f"<{kind}{part}>" for kind in ("image", "video") for part in ("", "_start", "_end")}
    tokenizer, ids = tokens(**names)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    experts = {"moe_intermediate_size": [32, 32], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
    vision = {name: value for name, value in SEQUENCE.items() if name not in ("temporal_patch_size", "out_hidden_size")}
    config = hf.Ernie4_5_VLMoeConfig(
        text_config={**TEXT, "rope_parameters": rope, **experts},
        vision_config=vision,
        **{f"{name}_id": one for name, one in zip(names, ids, strict=True)},
    )
    images = hf.Ernie4_5_VLMoeImageProcessor(size=area(), patch_size=14, merge_size=2)
    processor = hf.Ernie4_5_VLMoeProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=hf.Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False),
    )
    return finish(hf.Ernie4_5_VLMoeForConditionalGeneration, config, "sdpa"), processor


def gemma4_unified() -> Any:
    named = {f"{name}_token": f"<{name}>" for name in ("image", "boi", "eoi", "audio", "boa", "eoa")}
    tokenizer, ids = tokens("<|video|>", **named)
    language = {**TEXT, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
    config = hf.Gemma4UnifiedConfig(
        text_config=language,
        vision_config={"patch_size": 14, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 64,
                       "output_proj_dims": 32},
        audio_config=None,
        video_token_id=ids[-1],
        **{f"{name}_id": one for name, one in zip(named, ids, strict=False)},
    )  # fmt: skip
    return gemma4_pair("Gemma4Unified", config, tokenizer)


def glmga() -> Any:
    return glm("Glm46V", "Glm46V", "Glmga", model_type="glm4v_text")


def muse_spark() -> Any:
    sounds = ["<|audio|>", "<|soft_audio_start|>", "<|soft_audio_end|>"]
    experts = {"moe_intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_hidden_size": 32}
    audio = {"patch_sizes": [16, 6], "hidden_sizes": [8, 8], "depths": [1, 1], "num_hidden_layers": 2}
    settings = {"text_config": {**TEXT, "head_dim": 8, **experts}, "audio_config": {**audio, "out_hidden_size": 32}}
    return muse("MuseSpark", settings, sounds, feature_extractor=hf.MuseSparkFeatureExtractor())


def chameleon() -> Any:
    tokenizer, ids = tokens(image_token="<image>", boi_token="<racm3:break>", eoi_token="<eoss>")
    codes = {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "resolution": 32, "base_channels": 32}
    words = {f"IMGIMGBS{chr(ord('A') + i)}Z": 20 + i for i in range(16)}
    config = hf.ChameleonConfig(
        **{**TEXT, "num_key_value_heads": 4},
        vq_config={**codes, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1},
        vocabulary_map={"<image>": ids[0], **words},
    )
    images = hf.ChameleonImageProcessor(size={"shortest_edge": 32}, crop_size=square(32))
    processor = hf.ChameleonProcessor(images, tokenizer, image_seq_length=64)
    return finish(hf.ChameleonForConditionalGeneration, config, "sdpa"), processor
