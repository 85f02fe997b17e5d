"""Tiny vision-language models with random weights and their processors, one function per family.

Everything is built offline in a fraction of a second. The weights are drawn wide enough for attention to be uneven, so
that which token is kept, and where it stands, shows in the logits.
"""

from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 240,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]


def make_tokenizer(special: list[str], **names: str) -> Any:
    """Words and special tokens; `names` are those that processors ask for as `tokenizer.<name>`."""
    words = ["<pad>", "<unk>", "<s>", "</s>", *(f"w{i}" for i in range(60))]
    words += "abcdefghijklmnopqrstuvwxyz:.?!0123456789"
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens=names,
    )


def finish(model_class: Any, config: Any, attention: str) -> Any:
    """The model with its weights drawn anew, wider than a fresh initialisation."""
    config._attn_implementation = attention
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 or name.endswith(("newline", "class_embedding")):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    model.generation_config.eos_token_id = None  # random models stop at random; the tests fix the length instead
    return model


def clip_processor() -> Any:
    return hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})


def llava(attention: str = "sdpa", layer: int | list[int] = -2, strategy: str = "default", tower: str = "clip") -> Any:
    tokenizer = make_tokenizer(["<image>"])
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    tower_class = {"clip": hf.CLIPVisionConfig, "siglip": hf.SiglipVisionConfig, "dinov2": hf.Dinov2Config}[tower]
    vision = {**VISION, **({"vision_use_head": False} if tower == "siglip" else {})}
    config = hf.LlavaConfig(
        vision_config=tower_class(**vision),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=image_id,
        image_token_index=image_id,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    processor = hf.LlavaProcessor(
        image_processor=clip_processor(),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=0 if tower == "siglip" else 1,
    )
    return finish(hf.LlavaForConditionalGeneration, config, attention), processor


def llava_next(attention: str = "sdpa") -> Any:
    tokenizer = make_tokenizer(["<image>"])
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=image_id,
        image_token_index=image_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=PINPOINTS,
    )
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return finish(hf.LlavaNextForConditionalGeneration, config, attention), processor


def llava_onevision(attention: str = "sdpa", aspect: str = "anyres_max_9") -> Any:
    tokenizer = make_tokenizer(["<image>", "<video>"])
    config = hf.LlavaOnevisionConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config={**TEXT, "model_type": "qwen2"},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56}, do_sample_frames=False),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
    )
    return finish(hf.LlavaOnevisionForConditionalGeneration, config, attention), processor


def video_llava(attention: str = "sdpa") -> Any:
    tokenizer = make_tokenizer(["<image>", "<video>"])
    image_id, video_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = hf.VideoLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=image_id,
        image_token_index=image_id,
        video_token_id=video_id,
        video_token_index=video_id,
        vision_feature_layer=-2,
    )
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    processor = hf.VideoLlavaProcessor(
        image_processor=hf.VideoLlavaImageProcessor(**size),
        video_processor=hf.VideoLlavaVideoProcessor(**size, do_sample_frames=False),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return finish(hf.VideoLlavaForConditionalGeneration, config, attention), processor


def head_dim() -> int:
    """Width of a head of the language models."""
    return int(TEXT["hidden_size"]) // int(TEXT["num_attention_heads"])


def qwen(kind: str, attention: str) -> Any:
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = make_tokenizer(names, image_token=names[0], video_token=names[1])
    ids = tokenizer.convert_tokens_to_ids(names)
    special = dict(zip(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), ids))
    quarter, width = head_dim() // 8, TEXT["hidden_size"]
    rope = {"rope_type": "default", "mrope_section": [2 * quarter, quarter, quarter], "rope_theta": 10000.0}
    vision: dict[str, Any] = {"depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 14, "in_channels": 3}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
    text: dict[str, Any] = {**TEXT, "rope_parameters": rope}
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    config: Any
    if kind == "qwen2_vl":
        classes = hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLProcessor
        vision |= {"embed_dim": 32, "hidden_size": width, "mlp_ratio": 2}
    elif kind == "qwen2_5_vl":
        classes = hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLProcessor
        vision |= {"out_hidden_size": width, "intermediate_size": 64, "window_size": 56, "tokens_per_second": 2}
        vision |= {"fullatt_block_indexes": [1]}  # the last block is a window block: importance must not come from it
    else:
        classes = hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLProcessor
        vision |= {"out_hidden_size": width, "intermediate_size": 64, "num_position_embeddings": 256}
        vision |= {"deepstack_visual_indexes": [0, 1]}
        text |= {"head_dim": head_dim(), "rope_parameters": {**rope, "mrope_interleaved": True}}
    config = classes[0](text_config=text, vision_config=vision, **special)
    if kind == "qwen3_vl":
        video_processor: Any = hf.Qwen3VLVideoProcessor(
            size={"shortest_edge": 56 * 56 * 4, "longest_edge": 28 * 28 * 64 * 8}, **patches, do_sample_frames=False
        )
    else:
        video_processor = hf.Qwen2VLVideoProcessor(size=pixels, **patches, do_sample_frames=False)
    processor = classes[2](
        image_processor=hf.Qwen2VLImageProcessor(size=pixels, **patches),
        tokenizer=tokenizer,
        video_processor=video_processor,
    )
    return finish(classes[1], config, attention), processor


def smolvlm(attention: str = "sdpa", kind: str = "smolvlm") -> Any:
    places = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    tokenizer = make_tokenizer(
        ["<image>", "<video>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places]
    )
    vision = {**VISION, "patch_size": 7}
    text = {**TEXT, "model_type": "llama"}
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    pixels = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    processor: Any
    if kind == "smolvlm":
        config: Any = hf.SmolVLMConfig(vision_config=vision, text_config=text, image_token_id=image_id, scale_factor=2)
        video_size = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}}
        processor = hf.SmolVLMProcessor(
            image_processor=hf.SmolVLMImageProcessor(**pixels),
            tokenizer=tokenizer,
            video_processor=hf.SmolVLMVideoProcessor(**video_size, do_sample_frames=False),
            image_seq_len=16,
        )
        return finish(hf.SmolVLMForConditionalGeneration, config, attention), processor
    config = hf.Idefics3Config(vision_config=vision, text_config=text, image_token_id=image_id, scale_factor=2)
    processor = hf.Idefics3Processor(
        image_processor=hf.Idefics3ImageProcessor(**pixels), tokenizer=tokenizer, image_seq_len=16
    )
    return finish(hf.Idefics3ForConditionalGeneration, config, attention), processor


SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}


def paligemma(attention: str = "sdpa") -> Any:
    tokenizer = make_tokenizer(["<image>"], image_token="<image>")
    config = hf.PaliGemmaConfig(
        vision_config=SIGLIP,
        text_config={**TEXT, "model_type": "gemma", "head_dim": head_dim(), "vocab_size": 1500},
        image_token_id=tokenizer.image_token_id,
        image_token_index=tokenizer.image_token_id,
        projection_dim=TEXT["hidden_size"],
        vocab_size=1500,
    )
    image_processor = hf.SiglipImageProcessor(size={"height": 56, "width": 56})
    image_processor.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    return finish(hf.PaliGemmaForConditionalGeneration, config, attention), processor


def gemma3(attention: str = "sdpa") -> Any:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = make_tokenizer(list(names.values()), **names)
    config = hf.Gemma3Config(
        vision_config=SIGLIP,
        text_config={**TEXT, "head_dim": head_dim(), "vocab_size": 1500, "sliding_window": 64},
        image_token_id=tokenizer.image_token_id,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        mm_tokens_per_image=4,
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        image_seq_length=4,
    )
    return finish(hf.Gemma3ForConditionalGeneration, config, attention), processor


def internvl(attention: str = "sdpa") -> Any:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = make_tokenizer(list(names.values()), **names)
    config = hf.InternVLConfig(
        vision_config={**VISION, "image_size": [56, 56], "patch_size": [7, 7]},
        text_config={**TEXT, "model_type": "qwen2"},
        image_token_id=tokenizer.context_image_token_id,
        downsample_ratio=0.5,
    )
    size = {"height": 56, "width": 56}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=size, do_sample_frames=False),
        image_seq_length=16,
    )
    return finish(hf.InternVLForConditionalGeneration, config, attention), processor
