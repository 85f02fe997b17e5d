"""The VLM behind DINOv2: stock `LlavaForConditionalGeneration` and `LlavaProcessor`, the tower frozen."""

from transformers import (
    BitImageProcessor,
    Dinov2Config,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from examples.tiny_vlm.architecture import llava, llava_processor, make_tokenizer

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
    return llava_processor(image_processor, make_tokenizer(vocabulary()), PATCH_SIDE)


def make_tower_config() -> Dinov2Config:
    """DINOv2 ViT-S/14, its first `TOWER_LAYERS` layers."""
    return Dinov2Config(
        hidden_size=384, num_hidden_layers=TOWER_LAYERS, num_attention_heads=6, mlp_ratio=4, image_size=518,
        patch_size=PATCH_SIDE,
    )  # fmt: skip


def make_vlm(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The untrained VLM: tower, two-layer projector, and a Llama of 4 layers, 256 wide."""
    sizes = {"hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 4, "max_position_embeddings": 1024}
    return llava(tokenizer, make_tower_config(), -1, VISUAL_TOKENS, sizes)
