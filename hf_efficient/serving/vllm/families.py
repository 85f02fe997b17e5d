"""How each family is asked in vLLM: its models have other classes and names than transformers', and the same maths."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_efficient.compat.vllm import merged_tiles
from hf_efficient.methods import FAMILIES
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.families import towers
from hf_efficient.representation.vlm.families.family import Family, Unit, VisualInputs
from hf_efficient.representation.vlm.families.llava_next import LlavaNext, image_sizes
from hf_efficient.representation.vlm.families.llava_onevision import LlavaOnevision

from .encoder import attention_modules
from .places import with_places


class Served:
    """The questions that the plug-in asks, with the answers of LLaVA.

    Args:
        kind: `model_type` of the family.
        module: of vLLM's class, in `vllm.model_executor.models`.
        stock: name of that class, None where it is that of the architecture.
    """

    SOURCES: ClassVar[tuple[str, ...]] = ("cls", "received")
    #: why no attention can be read, None where it can
    fault: str | None = None

    def __init__(self, kind: str, module: str, stock: str | None = None) -> None:
        self.kind, self.module, self.stock = kind, module, stock

    @cached_property
    def family(self) -> Family:
        """The family in transformers, whose rules on units and importance hold here too."""
        found: Family = FAMILIES.row(self.kind).implementation
        return found

    def base(self, model: Any) -> Any:
        """What stands in for transformers' model without its head."""
        return model

    def tower(self, model: Any) -> Any:
        """The vision encoder."""
        return self.family.tower(self.base(model), "image")

    def images(self, model: Any, modality: str, arguments: dict[str, Any]) -> VisualInputs:
        """The call as transformers would make it."""
        return VisualInputs(self.base(model), modality, arguments)

    def units(self, images: VisualInputs, features: list[Tensor]) -> list[Unit]:
        """Units of a call, in the order of their features."""
        return self.family.units(images)

    def units_of_items(self, units: list[Unit], lengths: list[int]) -> list[int]:
        """How many units each picture or video has, of as many features as `lengths` says."""
        counts, sizes = [], iter(units)
        for length in lengths:
            count = 0
            while length > 0:
                length -= next(sizes).n
                count += 1
            counts.append(count)
        return counts

    def offers(self, model: Any) -> tuple[str, ...]:
        """Attention that its encoder gives, the best first."""
        if self.fault is not None:
            return ()
        return self.SOURCES if towers.prefix_tokens(self.tower(model)) else ("received",)

    def attention(self, model: Any) -> Any:
        """The attention module of the layer that importance comes from."""
        layers = attention_modules(self.tower(model))
        vision = model.config.vision_config
        count = getattr(vision, "num_hidden_layers", None) or vision.depth
        return layers[min(self.family.layer(self.base(model)) % count, len(layers) - 1)]

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        """Importance (N_u,) of the tokens of every unit, of what `AttentionInputs.importance` returned."""
        return self.family.scores(images, attention, units)

    def lengths(self, images: VisualInputs) -> list[int] | None:
        """Lengths of what sees itself alone in one row of the encoder, None where every row is an image."""
        return None

    def projector(self, model: Any) -> Any:
        """The module between encoder and language model."""
        return model.multi_modal_projector

    def width(self, model: Any) -> int:
        """Of a token of the language model."""
        return int(model.config.get_text_config().hidden_size)

    def most(self, info: Any, config: TokenPrunerConfig, modality: str, n: int) -> int:
        """The most tokens that are kept of a picture or video of at most `n`."""
        return config.tokens_to_keep(n)

    def old_tower(self, model: Any) -> bool:
        """Whether the encoder's weights have `vision_model.` in their names."""
        return hasattr(getattr(model, "vision_tower", None), "vision_model")

    def placed(
        self, model: Any, modality: str, arguments: dict[str, Any], tokens: list[Tensor], kept: list[Tensor] | None
    ) -> list[Tensor]:
        """What vLLM is given for every picture or video: its tokens, and with M-RoPE where they stand in it.

        `kept`: (K,) places of the tokens in what it was before; None where it is whole.
        """
        return tokens


GIVEN = "tiles_given"  # of every picture, those that pad it counted


class Tiled(Served):
    """LLaVA-NeXT and LLaVA-OneVision: tiles of one picture become rows with line breaks.

    Args:
        kind: `model_type` of the family, and vLLM's module of it.
        packing: makes the family as vLLM's model packs its features.
    """

    def __init__(self, kind: str, packing: Callable[[], LlavaNext]) -> None:
        super().__init__(kind, kind)
        self.packing = packing

    @cached_property
    def family(self) -> LlavaNext:
        return self.packing()

    def images(self, model: Any, modality: str, arguments: dict[str, Any]) -> VisualInputs:
        if modality == "image":  # a list of tiles of every picture, or all in one tensor: only its shape is asked
            tiles = arguments["pixel_values"]
            arguments = {**arguments, "pixel_values": tiles[0], GIVEN: [len(of_picture) for of_picture in tiles]}
        return VisualInputs(model, modality, arguments)

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        if GIVEN in images.arguments:  # pictures of one prompt are padded to as many tiles as the largest has
            whole = zip(attention.split(images.arguments[GIVEN]), self.family.tiles(images), strict=True)
            attention = torch.cat([rows[:count] for rows, count in whole])
        return self.family.scores(images, attention, units)

    def units(self, images: VisualInputs, features: list[Tensor]) -> list[Unit]:
        if images.modality == "image":
            return self.family.units(images)
        name = "pixel_values_videos"  # in vLLM of different lengths in one call
        clips = [VisualInputs(images.base, "video", {name: clip[None]}) for clip in images.arguments[name]]
        return [unit for clip in clips for unit in self.family.units(clip)]


def packed(images: VisualInputs, maps: list[Tensor], newline: float) -> list[Tensor]:
    """Maps (tiles, n) of every picture as vLLM's model packs features: (N,) each, with `newline` for line breaks."""
    return [
        merged_tiles(
            type(images.base),
            SimpleNamespace(config=images.base.config, image_newline=torch.tensor([newline], device=tiles.device)),
            torch.as_tensor(size),
            tiles.unsqueeze(-1),
        ).squeeze(-1)
        for size, tiles in zip(image_sizes(images), maps, strict=True)
    ]


class ServedLlavaNext(LlavaNext):
    """Packs as vLLM's model does."""

    def pack(self, images: VisualInputs, maps: list[Tensor], newline: float) -> list[Tensor]:
        return packed(images, maps, newline)


class ServedLlavaOnevision(LlavaOnevision):
    """Packs as vLLM's model does."""

    def pack(self, images: VisualInputs, maps: list[Tensor], newline: float) -> list[Tensor]:
        return packed(images, maps, newline)

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        if images.modality == "image":
            return super().scores(images, attention, units)
        pooled = images.base.apply_pooling(attention[:, self.dropped(images) :].unsqueeze(-1)).squeeze(-1)
        frames = [(unit.n - 1) // pooled.shape[1] for unit in units]
        return [torch.cat([clip.flatten(), clip.new_zeros(1)]) for clip in pooled.split(frames)]


class Idefics(Served):
    """SmolVLM and Idefics3: every tile is a unit, black ones are left out by vLLM's model."""

    fault = "vLLM's encoder of this family passes by its attention module where pictures have margins"

    def base(self, model: Any) -> Any:
        return model.model

    def units(self, images: VisualInputs, features: list[Tensor]) -> list[Unit]:
        n = int(images.base.image_seq_len)
        return [Unit(n) for x in features for _ in range(len(x) // n)]


class Qwen(Served):
    """Qwen-VL: patches of all pictures in one row, positions with axes."""

    #: whether a video's frames are numbered apart, with time stamps between them
    frames_apart = False

    def offers(self, model: Any) -> tuple[str, ...]:
        return ("received",)

    def lengths(self, images: VisualInputs) -> list[int] | None:
        grids = images.arguments[f"{images.modality}_grid_thw"].tolist()
        return [rows * columns for time, rows, columns in grids for _ in range(time)]

    def placed(
        self, model: Any, modality: str, arguments: dict[str, Any], tokens: list[Tensor], kept: list[Tensor] | None
    ) -> list[Tensor]:
        return with_places(model, modality, arguments, tokens, kept, frames=self.frames_apart)


class Qwen3(Qwen):
    """Qwen3-VL: every frame of a video is a unit, with a time stamp before it."""

    frames_apart = True

    def most(self, info: Any, config: TokenPrunerConfig, modality: str, n: int) -> int:
        """Of a video as many as vLLM counts with: each frame keeps its own, and how many there are is not known."""
        return n if modality == "video" else super().most(info, config, modality, n)


#: architecture in config.json -> how it is served
ARCHITECTURES: dict[str, Served] = {
    "LlavaForConditionalGeneration": Served("llava", "llava"),
    "LlavaNextForConditionalGeneration": Tiled("llava_next", ServedLlavaNext),
    "LlavaOnevisionForConditionalGeneration": Tiled("llava_onevision", ServedLlavaOnevision),
    "Qwen2VLForConditionalGeneration": Qwen("qwen2_vl", "qwen2_vl"),
    "Qwen2_5_VLForConditionalGeneration": Qwen("qwen2_5_vl", "qwen2_5_vl"),
    "Qwen3VLForConditionalGeneration": Qwen3("qwen3_vl", "qwen3_vl"),
    "InternVLForConditionalGeneration": Served("internvl", "interns1", "InternS1ForConditionalGeneration"),
    "Gemma3ForConditionalGeneration": Served("gemma3", "gemma3_mm"),
    "SmolVLMForConditionalGeneration": Idefics("smolvlm", "smolvlm"),
    "Idefics3ForConditionalGeneration": Idefics("idefics3", "idefics3"),
}
