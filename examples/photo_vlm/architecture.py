"""The VLM behind DINOv2: stock `LlavaForConditionalGeneration` and `LlavaProcessor`, the tower frozen."""

from transformers import (
    BitImageProcessor,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from examples.tiny_vlm.architecture import CHAT_TEMPLATE, IMAGE, make_tokenizer

from .questions import vocabulary
from .scenes import GRID, IMAGE_SIDE, PATCH_SIDE

__all__ = ["TOWER_LAYERS", "VISUAL_TOKENS", "make_processor", "make_vlm"]

VISUAL_TOKENS = GRID * GRID
#: Layers of DINOv2 that are run: names and small print are read best in its middle (a probe of layers 4 to 12).
TOWER_LAYERS = 6


def make_processor() -> LlavaProcessor:
    """Images to 16 x 16 patches, questions to tokens, 256 placeholders for the visual tokens."""
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    image_processor = BitImageProcessor(
        size=size, do_center_crop=False, crop_size=size, image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=image_processor, tokenizer=make_tokenizer(vocabulary()), patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def make_tower_config() -> Dinov2Config:
    """DINOv2 ViT-S/14, its first `TOWER_LAYERS` layers."""
    return Dinov2Config(
        hidden_size=384, num_hidden_layers=TOWER_LAYERS, num_attention_heads=6, mlp_ratio=4, image_size=518,
        patch_size=PATCH_SIDE,
    )  # fmt: skip


def make_vlm(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The untrained VLM: tower, two-layer projector, and a Llama of 4 layers, 256 wide."""
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=640, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=make_tower_config(), text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=VISUAL_TOKENS, vision_feature_layer=-1, vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 8
    return model
