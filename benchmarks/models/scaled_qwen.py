"""Models of the Qwen families with random weights: their own patches, windows and levels, fewer and narrower layers."""

from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from benchmarks.models.words import word_tokenizer

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SPECIAL = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
IMAGE = "<|vision_start|> <|image_pad|> <|vision_end|>"
HEAD = 64  # width of an attention head of the encoder; 128 in the language model


def build(kind: str, vision_layers: int, vision_width: int, layers: int, width: int) -> tuple[Any, Any]:
    """A model of a family, and its processor with a home-made tokenizer."""
    tokenizer = word_tokenizer(SPECIAL, image_token=SPECIAL[0], video_token=SPECIAL[1])
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    text = {
        "bos_token_id": None, "eos_token_id": None,
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 3 * width,
        "num_hidden_layers": layers, "num_attention_heads": width // 128, "num_key_value_heads": width // 128,
        "head_dim": 128, "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }  # fmt: skip
    vision: dict[str, Any] = {"depth": vision_layers, "num_heads": vision_width // HEAD, "spatial_merge_size": 2}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": vision_width, "hidden_size": width, "patch_size": 14}
    elif kind == "qwen2_5_vl":
        # the middle block and the last see all
        every = range(vision_layers // 2 - 1, vision_layers, vision_layers // 2)
        vision |= {"hidden_size": vision_width, "intermediate_size": 8 * vision_width // 3, "out_hidden_size": width,
                   "patch_size": 14, "window_size": 112, "fullatt_block_indexes": list(every)}  # fmt: skip
    else:
        vision |= {"hidden_size": vision_width, "intermediate_size": 4 * vision_width, "out_hidden_size": width,
                   "patch_size": 16, "deepstack_visual_indexes": [0, vision_layers // 2]}  # fmt: skip
    config = CONFIG_MAPPING[kind](text_config=text, vision_config=vision, **ids)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if kind == "qwen3_vl" else {}
    patches = {"patch_size": vision["patch_size"], "merge_size": 2, "temporal_patch_size": 2}
    name: Any = PROCESSOR_MAPPING_NAMES[kind]
    processor = getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(**patches, **colours),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(**patches),
    )
    return model, processor
