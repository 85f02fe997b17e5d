"""The families of vision-language models that can be pruned, chosen by the model's own `config.model_type`."""

from .row import Kind, Method

_FOLDER = "hf_efficient.representation.vlm.families"

FAMILIES = Kind(
    budget="model families",
    choice="model_type",
    call="attach_token_pruner(model, processor, config)",
    runs="attach_token_pruner and prune_inputs, on any device that transformers runs the model on",
    page="families.md",
    methods=(
        Method("llava", "LLaVA 1.5: an image is a unit, one token per patch", f"{_FOLDER}.llava:FAMILY"),
        Method("llava_next", "LLaVA-NeXT: an image is a unit, an overview and rows of tiles with line breaks",
               f"{_FOLDER}.llava_next:FAMILY"),
        Method("llava_onevision", "LLaVA-OneVision: as LLaVA-NeXT; a video is a unit too",
               f"{_FOLDER}.llava_onevision:FAMILY"),
        Method("video_llava", "Video-LLaVA: an image or a frame is a unit", f"{_FOLDER}.video_llava:FAMILY"),
        Method("qwen2_vl", "Qwen2-VL: an image or a video is a unit, positions are kept", f"{_FOLDER}.qwen2_vl:FAMILY"),
        Method("qwen2_5_vl", "Qwen2.5-VL: as Qwen2-VL, with an encoder that looks through windows",
               f"{_FOLDER}.qwen2_5_vl:FAMILY"),
        Method("qwen3_vl", "Qwen3-VL: as Qwen2-VL, with features of early layers; a frame is a unit",
               f"{_FOLDER}.qwen3_vl:FAMILY"),
        Method("smolvlm", "SmolVLM: as Idefics3; a frame of a video is a tile too", f"{_FOLDER}.smolvlm:FAMILY"),
        Method("idefics3", "Idefics3: a tile is a unit, its tokens are squares of patches",
               f"{_FOLDER}.idefics3:FAMILY"),
        Method("paligemma", "PaliGemma: an image is a unit, positions count from 1", f"{_FOLDER}.paligemma:FAMILY"),
        Method("gemma3", "Gemma 3: an image or a crop is a unit, its tokens are averages of patches",
               f"{_FOLDER}.gemma3:FAMILY"),
        Method("internvl", "InternVL: a tile or a frame is a unit, its tokens are squares of patches",
               f"{_FOLDER}.internvl:FAMILY"),
    ),
)  # fmt: skip
