"""Tiny vision encoders with random weights, and what each looks at when it runs on noise."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from tests.tiny_models import VISION

PATCHES = {key: value for key, value in VISION.items() if key != "image_size"}
PACKED = {"depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 14, "in_channels": 3, "spatial_merge_size": 2,
          "temporal_patch_size": 2, "out_hidden_size": 32, "intermediate_size": 64}  # fmt: skip
WHOLE = [(0, slice(None)), (1, slice(None))]
LAYER = 1  # of three, the one looked at; in Qwen2.5-VL the one without windows


def noise(encoder: Any, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(next(encoder.parameters()).dtype)


def pictures(encoder: Any, **settings: Any) -> Any:
    return encoder(noise(encoder, 2, 3, 56, 56), **settings)


def of_two_sizes(encoder: Any, **settings: Any) -> Any:
    """Two pictures in one row of 16 + 8 patches."""
    return encoder(noise(encoder, 2, 3, 56, 56), image_sizes=torch.tensor([[56, 56], [28, 56]]), **settings)


def packed(encoder: Any, **settings: Any) -> Any:
    grid = torch.tensor([[1, 2, 4], [1, 4, 4]])
    return encoder(noise(encoder, 8 + 16, 3 * 2 * 14 * 14), grid_thw=grid, **settings)


def padded(encoder: Any, **settings: Any) -> Any:
    """Two pictures of 16 and of 8 patches, the second filled up to 16."""
    mask = torch.tensor([[1] * 16, [1] * 8 + [0] * 8])
    shapes = torch.tensor([[4, 4], [2, 4]])
    return encoder(noise(encoder, 2, 16, 588), pixel_attention_mask=mask, spatial_shapes=shapes, **settings)


def placed(encoder: Any, **settings: Any) -> Any:
    places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1).view(1, 16, 2)
    return encoder(noise(encoder, 2, 16, 588), pixel_position_ids=places.repeat(2, 1, 1), **settings)


@dataclass
class Encoder:
    """A class, its config, how it runs on two pictures, and (row, tokens) of each picture in its attention maps."""

    cls: Any
    config: Any
    run: Callable[..., Any] = pictures
    looks: Any = None
    cls_token: bool = False

    def make(self, attention: str = "sdpa") -> Any:
        self.config._attn_implementation = attention
        torch.manual_seed(0)
        encoder = self.cls(self.config).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in encoder.parameters():
                if weight.dim() > 1:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
        return encoder


SQUARE = {**VISION, "image_size": [56, 56], "patch_size": [14, 14]}
LLAMA4 = {"intermediate_size": 128, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
TWO_BLOCKS = [(0, slice(0, 16)), (0, slice(16, 24))]
ENCODERS = {
    "siglip": Encoder(hf.SiglipVisionModel, hf.SiglipVisionConfig(**VISION)),
    "clip": Encoder(hf.CLIPVisionModel, hf.CLIPVisionConfig(**VISION), cls_token=True),
    "dinov2": Encoder(hf.Dinov2Model, hf.Dinov2Config(**VISION), cls_token=True),
    "internvl": Encoder(hf.InternVLVisionModel, hf.InternVLVisionConfig(**SQUARE), cls_token=True),
    "idefics3": Encoder(Idefics3VisionTransformer, Idefics3VisionConfig(**VISION)),
    "pixtral": Encoder(hf.PixtralVisionModel, hf.PixtralVisionConfig(**VISION), of_two_sizes, TWO_BLOCKS),
    "siglip2": Encoder(
        hf.Siglip2VisionModel,
        hf.Siglip2VisionConfig(**PATCHES, num_patches=16, vision_use_head=False),
        padded,
        [(0, slice(None)), (1, slice(0, 8))],
    ),
    "gemma4": Encoder(
        hf.Gemma4VisionModel,
        hf.Gemma4VisionConfig(
            **PATCHES, num_key_value_heads=2, head_dim=8, pooling_kernel_size=2, position_embedding_size=64
        ),
        placed,
    ),
    "llama4": Encoder(hf.Llama4VisionModel, hf.Llama4VisionConfig(**{**VISION, **LLAMA4})),
    "qwen2_vl": Encoder(
        Qwen2VisionTransformerPretrainedModel, Qwen2VLVisionConfig(**PACKED, embed_dim=32, mlp_ratio=2), packed
    ),
    "qwen2_5_vl": Encoder(
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VLVisionConfig(**PACKED, window_size=56, fullatt_block_indexes=[LAYER]),
        packed,
    ),
    "glm4v": Encoder(hf.Glm4vVisionModel, Glm4vVisionConfig(**PACKED, image_size=112), packed),
}


@contextmanager
def eager_attention(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the weights that the stock eager attention computes for one attention module."""
    source: Any = sys.modules[type(module).__module__]
    name = next(n for n in ("vision_eager_attention_forward", "eager_attention_forward") if hasattr(source, n))
    stock, seen = getattr(source, name), []

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        output, weights = stock(self, *args, **kwargs)
        if self is module:
            seen.append(weights.detach())
        return output, weights

    setattr(source, name, record)
    try:
        yield seen
    finally:
        setattr(source, name, stock)
